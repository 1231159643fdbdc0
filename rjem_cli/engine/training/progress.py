"""What a watcher of training sees."""

from __future__ import annotations

from typing import NamedTuple

TRAINING = "training"  # the phase in which steps are taken


class Progress(NamedTuple):
    """After each step of a phase; `metrics` come with the log lines of training only, `note` with what is worth a line
    of its own."""

    phase: str
    step: int
    steps: int
    metrics: dict[str, float] | None = None
    note: str | None = None


class Stopped(Exception):
    """Raised by a watcher, in any phase but training, for one who was asked to stop: what is being drawn or measured is
    left undone."""
