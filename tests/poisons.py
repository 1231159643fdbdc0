"""NaNs as a faulty device would produce them, for the tests and the benchmark of recovery."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

from torch import Tensor

from rjem_cli.engine.training.trainer import Batch, Trainer

Poison = Callable[[Trainer], None]
Step = Callable[[Trainer], dict[str, Tensor]]


def nan_in_a_weight(trainer: Trainer) -> None:
    trainer.model.head.weight.data[0, 0] = math.nan


def nan_in_the_average(trainer: Trainer) -> None:
    """And in the live weights, from which the average took it."""
    nan_in_a_weight(trainer)
    next(iter(trainer.ema.module.parameters())).data.view(-1)[0] = math.nan


def nan_in_the_chains(trainer: Trainer) -> None:
    assert trainer.buffer is not None
    trainer.buffer.images[:] = math.nan


def nan_in_the_images(trainer: Trainer) -> None:
    """Of the next batch."""
    take = trainer.next_batch

    def next_batch() -> Batch:
        del trainer.next_batch  # type: ignore[attr-defined]
        batch = take()
        batch.x[0, 0, 0, 0] = math.nan
        return batch

    trainer.next_batch = next_batch  # type: ignore[method-assign]


def with_poisons(take: Step, poisons: Mapping[int, Poison]) -> Step:
    """`take` with a poison just before some calls. Counts calls, not the run's steps."""
    calls = itertools.count()

    def train_step(trainer: Trainer) -> dict[str, Tensor]:
        poisons.get(next(calls), lambda trainer: None)(trainer)
        return take(trainer)

    return train_step
