"""The only module that prints. Results go to stdout, logs and progress to stderr. A terminal gets tables and bars, a
pipe plain lines."""

import contextlib
import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from rjem_cli.cli.formatting import Row, Table, format_bytes, format_duration, least_width, records, rich_table
from rjem_cli.cli.progress import ProgressBar, live_bars
from rjem_cli.errors import ConfigError, RjemError
from rjem_cli.files import explained

SEPARATORS = str.maketrans("\t\r\n", "   ")  # a class name may hold any of them


@dataclass(frozen=True)
class Console:
    """`quiet` leaves warnings and the main result, `as_json` one JSON document, `mute` nothing."""

    quiet: bool = False
    as_json: bool = False
    mute: bool = False

    @property
    def on_terminal(self) -> bool:
        """Whether stdout is a terminal."""
        return is_terminal(sys.stdout)

    def log(self, text: str) -> None:
        """One message for a person, to stderr; nothing if it is empty."""
        if text and not self.quiet:
            log(text)

    def warn(self, text: str) -> None:
        """Log a problem to stderr, even with `quiet`."""
        if not self.mute:
            log(f"warning: {text}")

    def note(self, text: str) -> None:
        """Log what limits a result, even with `quiet`."""
        if not self.mute:
            log(f"note: {text}")

    def result(self, text: str) -> None:
        """The text that a script needs, to stdout."""
        if not self.mute:
            with explained("write to", "standard output"):
                print(text, flush=True)

    def document(self, values: Any) -> None:
        """A JSON document, to stdout."""
        self.result(json.dumps(values, indent=2))

    def table(self, title: str, columns: Row, rows: Sequence[Row]) -> None:
        """A table on a terminal; TSV in a pipe. Nothing with `quiet` or `as_json`."""
        if self.quiet or self.as_json:
            return
        if not self.on_terminal:
            self.tab_separated(columns, rows)
        elif self.width() < least_width(columns, rows):
            self.result("\n".join(records(title, columns, rows)))
        else:
            from rich.console import Console as RichConsole

            RichConsole(file=sys.stdout).print(rich_table(title, columns, rows))

    def tab_separated(self, columns: Row, rows: Sequence[Row]) -> None:
        """TSV without the columns that have no name."""
        named = [index for index, column in enumerate(columns) if column]
        for row in (columns, *rows):
            self.result("\t".join(row[index].translate(SEPARATORS) for index in named))

    def width(self) -> int:
        """Terminal cells in a line of stdout; unlimited in a pipe."""
        return shutil.get_terminal_size().columns if self.on_terminal else sys.maxsize

    def estimate(self, seconds: float | None, memory: int | None, details: str = "", at_most: bool = False) -> None:
        """The result of --dry-run on this device; `memory` in bytes; None where it is unknown."""
        text = "the time is unknown"
        if seconds is not None:
            text = f"{'at most' if at_most else 'about'} {format_duration(seconds)} on this device"
        if memory is not None:
            text += f" and {format_bytes(memory)} of memory"
        self.log(text + details)
        if self.as_json:
            self.document({"seconds": seconds, "memory_bytes": memory})

    def ask(self, question: str, flag: str) -> bool:
        """Whether the user answers yes. Raises ConfigError, which names the flag to give, without a terminal."""
        if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
            raise ConfigError(f"{question} cannot ask without a terminal; confirm with {flag}")
        log(f"{question} [y/N]")
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def check_stream(self, as_json: bool) -> None:
        """Raises ConfigError where a tar on stdout would reach a terminal or mix with a JSON document."""
        if self.on_terminal:
            raise ConfigError("-o - writes a tar to stdout, which is a terminal; add | tar t, or give a file")
        if as_json:
            raise ConfigError("-o - and --json both write to stdout; give one of them")

    def binary(self) -> BinaryIO:
        """stdout for bytes. Raises RjemError if it is closed."""
        if sys.stdout is None:
            raise RjemError("standard output is closed; give a file with -o")
        return sys.stdout.buffer

    def binary_input(self) -> BinaryIO:
        """stdin for bytes. Raises ConfigError if it is a terminal."""
        if sys.stdin is None or is_terminal(sys.stdin):
            raise ConfigError("- reads a tar from stdin, which is a terminal; pipe one in, or give a folder or a file")
        return sys.stdin.buffer

    @contextlib.contextmanager
    def progress_bar(self, above: Callable[[], Table] | None = None) -> Iterator[ProgressBar]:
        """Bars below the table that `above` returns, on a terminal; log lines elsewhere."""
        if self.quiet or not is_terminal(sys.stderr):
            yield ProgressBar(self.log)
        else:
            with live_bars(sys.stderr, self.log, above) as bar:
                yield bar


def is_terminal(stream: Any) -> bool:
    """False also for a stream that the shell closed."""
    return stream is not None and bool(stream.isatty())


def log(text: str) -> None:
    """Write to stderr, wrapped between words on a terminal. A closed pipe, a full disk or a signal handler that logs in
    the middle of another line must not end the work."""
    text = "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)
    if is_terminal(sys.stderr):
        width = max(20, shutil.get_terminal_size().columns - 1)
        text = textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            print(text, file=sys.stderr, flush=True)


def fail(message: str) -> None:
    """A known error: one line on stderr."""
    log(f"rjem: {' '.join(message.split())}")
