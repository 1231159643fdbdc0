"""How a training run reports its progress, measures its speed, and is asked to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from rjem_cli.engine.callbacks import Log, noop

if TYPE_CHECKING:
    from torch import Tensor

TRAINING = "training"  # the phase in which steps are taken


class TrainingProgress(NamedTuple):
    """A step of a phase. `metrics`, and the `energies` E(x) (N,) of data and chains, come with each line of
    metrics.jsonl."""

    phase: str
    step: int
    steps: int
    metrics: dict[str, float] | None = None
    energies: dict[str, Tensor] | None = None


class Stopped(Exception):
    """The run was asked to stop while it drew samples or evaluated the model."""


@dataclass(frozen=True)
class TrainingCallbacks:
    """`should_stop` is called after each step, and while samples are drawn or the model is evaluated. `on_save` gets
    the seconds that a checkpoint took, perhaps from another thread."""

    on_progress: Callable[[TrainingProgress], None] = noop
    log: Log = noop
    warn: Log = noop
    should_stop: Callable[[], bool] = lambda: False
    on_save: Callable[[float], None] = noop

    def progress(self, phase: str, step: int, steps: int) -> None:
        """Report a phase other than training. Raises Stopped."""
        self.on_progress(TrainingProgress(phase, step, steps))
        if self.should_stop():
            raise Stopped


class Clock:
    """Measures steps per second since the previous call, and minutes since the last attempt to save."""

    def __init__(self, step: int):
        self.step, self.time = step, time.perf_counter()
        self.saved_at = self.time

    def steps_per_second(self, step: int) -> float:
        now = time.perf_counter()
        rate = (step - self.step) / max(1e-9, now - self.time)
        self.step, self.time = step, now
        return rate

    def minutes_since_save(self) -> float:
        return (time.perf_counter() - self.saved_at) / 60

    def note_save(self) -> None:
        self.saved_at = time.perf_counter()
