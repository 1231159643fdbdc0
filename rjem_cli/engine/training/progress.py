"""What a watcher of training sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

TRAINING = "training"  # the phase in which steps are taken


class Progress(NamedTuple):
    """After each step of a phase. With the log lines of training come `metrics`, and `energies`, E(x) (N,) of data and
    of chains. `note` or `warning` is a message, for a line of its own."""

    phase: str
    step: int
    steps: int
    metrics: dict[str, float] | None = None
    note: str | None = None
    warning: str | None = None
    energies: dict[str, Tensor] | None = None


class Stopped(Exception):
    """Raised by a watcher, in any phase but training, for one who was asked to stop: what is being drawn or measured is
    left undone."""
