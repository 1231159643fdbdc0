"""The only writer. Data goes to stdout, talk and progress to stderr; a terminal gets tables and bars, a pipe gets
plain lines."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from rjem_cli.errors import ConfigError, RjemError
from rjem_cli.files import explained

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import RenderableType
    from rich.progress import Progress, TaskID
    from rich.table import Table as RichTable

    Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]  # title, columns, rows


LOG_SECONDS = 15
REFRESHES = 4  # a second, of what moves on a terminal
BORDER = 3  # characters around a cell of a table
SEPARATORS = str.maketrans("\t\r\n", "   ")  # of a TSV; a class may be called after any folder


@dataclass
class Phase:
    """One kind of work: when it began, with how much done; how much is done now, and of how much; whether its end was
    said; what was said of it last; its bar on a terminal."""

    began: float
    before: int
    done: int
    total: int
    ended: bool = False
    text: str | None = None
    task: TaskID | None = None


@dataclass
class ProgressBar:
    """A bar a phase on a terminal, with the time left; elsewhere a line now and then. A phase may rest while another
    goes on, and come again."""

    console: Console
    progress: Progress | None = None
    phases: dict[str, Phase] = field(default_factory=dict)
    said: float = 0.0

    def update(self, phase: str, done: int, total: int, text: str | None = None) -> None:
        now, new = time.monotonic(), phase not in self.phases
        found = self.phases.setdefault(phase, Phase(now, done, done, total))
        if done < found.done or found.done == found.total:  # it is done once more
            found.began, found.before = now, done
        found.done, found.total, found.text = done, total, text or found.text
        if self.progress is None:
            self.say_now_and_then(phase, new, total, now)
            return
        if found.task is None:
            found.task = self.progress.add_task(phase, text="")
        elif done == 0:
            self.progress.reset(found.task)
        self.progress.update(found.task, completed=done, total=total, text=found.text or "")

    def say_now_and_then(self, phase: str, new: bool, total: int, now: float) -> None:
        """For logs: a line as a phase first begins and first ends, and one every LOG_SECONDS with the time left."""
        found = self.phases[phase]
        took, ended = now - found.began, found.done == total
        if new:
            self.said = now
            self.console.log(f"{phase}" if total == 1 else f"{phase}: {found.done} of {total}")
        elif ended and total > 1 and not found.ended:
            found.ended = True
            self.console.log(f"{phase}: {total} of {total}, {took:.1f} s")
        elif not ended and now - self.said >= LOG_SECONDS:
            self.said = now
            left = took / max(1, found.done - found.before) * (total - found.done)
            text = f"; {found.text}" if found.text else ""
            self.console.log(f"{phase}: {found.done} of {total}, {format_duration(left)} left{text}")


@dataclass(frozen=True)
class Console:
    """How one command speaks: `quiet` leaves the essential line, `as_json` one JSON document, `mute` nothing."""

    quiet: bool = False
    as_json: bool = False
    mute: bool = False

    def log(self, text: str) -> None:
        """Talk, for a person."""
        if not self.quiet:
            log(text)

    def warn(self, text: str) -> None:
        """Log a problem to stderr, even with `quiet`."""
        if not self.mute:
            log(f"warning: {text}")

    def result(self, text: str) -> None:
        """The line that a script needs."""
        if self.mute:
            return
        with explained("write to", "standard output"):
            print(text, flush=True)

    def check_stream(self, as_json: bool) -> None:
        """Raises ConfigError where bytes on stdout would reach a person or mix with a document."""
        if is_terminal(sys.stdout):
            raise ConfigError("-o - writes a tar to stdout, which is a terminal; add | tar t, or give a file")
        if as_json:
            raise ConfigError("-o - and --json both want stdout; give one of them")

    def binary(self) -> BinaryIO:
        """stdout for bytes."""
        if sys.stdout is None:
            raise RjemError("standard output is closed; give a file with -o")
        return sys.stdout.buffer

    def binary_input(self) -> BinaryIO:
        """stdin for bytes. Raises ConfigError where a person would have to type them."""
        if sys.stdin is None or is_terminal(sys.stdin):
            raise ConfigError("- reads a tar from stdin, which is a terminal; pipe one in, or give a folder or a file")
        return sys.stdin.buffer

    def ask(self, question: str, flag: str) -> bool:
        """Whether a person says yes. Raises ConfigError, with the flag that says it beforehand, where there is none."""
        if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
            raise ConfigError(f"{question} there is nobody to ask; say so with {flag}")
        log(f"{question} [y/N]")
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def document(self, values: Any) -> None:
        self.result(json.dumps(values, indent=2))

    def estimate(self, seconds: float | None, memory: int | None, parts: str = "", at_most: bool = False) -> None:
        """What a --dry-run expects on the device at hand; `memory` in bytes; None for what cannot be told."""
        held = "" if memory is None else f" and {format_bytes(memory)} of memory"
        taken = "how long it takes is not known"
        if seconds is not None:
            taken = f"{'at most ' if at_most else ''}about {format_duration(seconds)} here"
        self.log(f"{taken}{held}{parts}")
        if self.as_json:
            self.document({"seconds": seconds, "memory_bytes": memory})

    @property
    def on_terminal(self) -> bool:
        return is_terminal(sys.stdout)

    def width(self) -> int:
        """Characters of a line on stdout; a pipe has no end of them."""
        return shutil.get_terminal_size().columns if self.on_terminal else sys.maxsize

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A Rich table on a terminal; TSV, full width, on a pipe, where a column without a name is left out."""
        if self.quiet or self.as_json:
            return
        if not is_terminal(sys.stdout):
            self.tab_separated(columns, rows)
        elif self.width() < least_width(columns, rows):
            self.result("\n".join(records(title, columns, rows)))
        else:
            rich_console(sys.stdout).print(rich_table(title, columns, rows))

    def tab_separated(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Full width, without the columns that have no name."""
        named = [place for place, column in enumerate(columns) if column]
        for row in (columns, *rows):
            self.result("\t".join(row[place].translate(SEPARATORS) for place in named))

    @contextmanager
    def progress_bar(self, above: Callable[[], Table] | None = None) -> Iterator[ProgressBar]:
        """On a terminal bars, and a table that is drawn anew `above` them."""
        if self.quiet or not is_terminal(sys.stderr):
            yield ProgressBar(self)
            return
        from rich.console import Group
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        rest = TextColumn("{task.fields[text]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
        columns = (
            "{task.description}",
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            "left",
            rest,
        )
        screen = rich_console(sys.stderr)
        progress = Progress(*columns, console=screen, expand=True)

        def shown() -> RenderableType:
            table = above() if above else None
            return Group(rich_table(*table), progress) if table and table[-1] else progress

        with Live(console=screen, get_renderable=shown, refresh_per_second=REFRESHES):
            yield ProgressBar(self, progress)


def format_duration(seconds: float) -> str:
    """In its two largest units; a second at least."""
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if minutes < 1:
        return f"{max(1, round(seconds))} s"
    if hours < 1:
        return f"{int(minutes)} min {int(seconds % 60)} s"
    if days < 1:
        return f"{int(hours)} h {int(minutes % 60)} min"
    return f"{int(days)} d {int(hours % 24)} h"


def pluralize(count: int, name: str) -> str:
    """`1 chain`, `2 chains`."""
    return f"{count} {name}{'s' * (count != 1)}"


def format_age(seconds: float) -> str:
    """In its largest unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"


def format_bytes(count: int) -> str:
    """Bytes in the largest unit that leaves a whole part."""
    size, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"


def is_terminal(stream: Any) -> bool:
    """False also for a stream that the shell closed."""
    return stream is not None and bool(stream.isatty())


def wrapped(text: str) -> str:
    """On a terminal, lines broken between words; elsewhere the text as it is."""
    if not is_terminal(sys.stderr):
        return text
    width = max(20, shutil.get_terminal_size().columns - 1)
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def least_width(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Characters that a table needs to show every value: first cells whole, others broken between words."""
    first, *rest = zip(columns, *rows)
    words = [max((len(word) for cell in column for word in cell.split()), default=0) for column in rest]
    return 1 + sum(BORDER + width for width in (max(map(len, first)), *words))


def records(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table as lines: the first cell of each row, then `column: value` for each other cell."""
    if title:
        yield f"{title}:"
    for first, *rest in rows:
        yield first
        yield from (f"  {name}: {cell}" if name else f"  {cell}" for name, cell in zip(columns[1:], rest) if cell)


def rich_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> RichTable:
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(title=title or None, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, no_wrap=place == 0, overflow="fold")  # a name that is cut is none
    for row in rows:
        table.add_row(*map(Text, row))  # a name may look like markup
    return table


def rich_console(stream: Any) -> RichConsole:
    from rich.console import Console as RichConsole

    return RichConsole(file=stream)


def log(text: str) -> None:
    """To stderr. That its reader has gone or its disk is full is no reason to lose work, nor that a signal's handler
    speaks in the middle of another word."""
    text = "".join(sign if sign.isprintable() or sign in "\n\t" else "\N{REPLACEMENT CHARACTER}" for sign in text)
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            print(wrapped(text), file=sys.stderr, flush=True)


def fail(message: str) -> None:
    """A known error: one line on stderr."""
    log(f"rjem: {' '.join(message.split())}")
