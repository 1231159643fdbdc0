"""Progress of a command: bars on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from rjem_cli.cli.formatting import Table, format_duration, rich_table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress, TaskID

LOG_SECONDS = 15  # between two log lines
REFRESHES = 4  # per second, on a terminal


@dataclass
class Phase:
    """One kind of work: `start` is the time it began at, in seconds, with `start_done` of `total` already done."""

    start: float
    start_done: int
    done: int
    total: int
    end_logged: bool = False
    text: str = ""
    task: TaskID | None = None


@dataclass
class ProgressBar:
    """Phases may alternate, go back, and begin again. `progress` is None where there is no terminal."""

    log: Callable[[str], None]
    progress: Progress | None = None
    phases: dict[str, Phase] = field(default_factory=dict)
    last_log: float = 0.0

    def update(self, name: str, done: int, total: int, text: str | None = None) -> None:
        now, is_new = time.monotonic(), name not in self.phases
        phase = self.phases.setdefault(name, Phase(now, done, done, total))
        if done < phase.done or phase.done == phase.total:  # it went back, or begins again
            phase.start, phase.start_done = now, done
        phase.done, phase.total, phase.text = done, total, text or phase.text
        if self.progress is None:
            self.log_phase(name, phase, now, is_new)
            return
        if phase.task is None:
            phase.task = self.progress.add_task(name, text="")
        elif done == 0:
            self.progress.reset(phase.task)
        self.progress.update(phase.task, completed=done, total=total, text=phase.text)

    def log_phase(self, name: str, phase: Phase, now: float, is_new: bool) -> None:
        """Log when a phase first begins, when it first ends, and every LOG_SECONDS the time left."""
        seconds, ended = now - phase.start, phase.done == phase.total
        if is_new:
            self.last_log = now
            self.log(name if phase.total == 1 else f"{name}: {phase.done} of {phase.total}")
        elif ended and phase.total > 1 and not phase.end_logged:
            phase.end_logged = True
            self.log(f"{name}: {phase.total} of {phase.total}, {seconds:.1f} s")
        elif not ended and now - self.last_log >= LOG_SECONDS:
            self.last_log = now
            left = seconds / max(1, phase.done - phase.start_done) * (phase.total - phase.done)
            text = f"; {phase.text}" if phase.text else ""
            self.log(f"{name}: {phase.done} of {phase.total}, {format_duration(left)} left{text}")


@contextmanager
def live_bars(stream: TextIO, log: Callable[[str], None], above: Callable[[], Table] | None) -> Iterator[ProgressBar]:
    """Bars on a terminal, below a table that `above` returns anew for each refresh."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    text = TextColumn("{task.fields[text]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
    bar, count, time_left = BarColumn(bar_width=10), MofNCompleteColumn(), TimeRemainingColumn()
    screen = Console(file=stream)
    progress = Progress("{task.description}", bar, count, time_left, "left", text, console=screen, expand=True)

    def render() -> RenderableType:
        table = above() if above else None
        return Group(rich_table(*table), progress) if table and table[-1] else progress

    with Live(console=screen, get_renderable=render, refresh_per_second=REFRESHES):
        yield ProgressBar(log, progress)
