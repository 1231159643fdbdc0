"""What a run will take on this device: a few short steps on made-up images of the right shape, scaled up.

A step's time is linear in the moves of the attack and of the chain: a base, something for each pair of moves that may
share a pass, and something for each move alone.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from rjem_cli.config import SAMPLE_MODES, DataOptions, TrainConfig
from rjem_cli.engine.chains.pipeline import plan_of
from rjem_cli.engine.data.downloads import STATED
from rjem_cli.engine.data.images import ImageSet, Splits
from rjem_cli.engine.data.load import load_splits
from rjem_cli.engine.model.prior import ClassGaussianPrior
from rjem_cli.engine.model.wide_resnet import build_model
from rjem_cli.engine.runtime import Runtime
from rjem_cli.engine.sampling.preview import LARGEST_CLASS_COUNT
from rjem_cli.engine.timing import (
    BESIDE_PASSES,
    MOST_ROUNDS,
    ROUNDS,
    pass_seconds,
    peak_bytes,
    total_bytes,
    usual_seconds,
)
from rjem_cli.engine.training.averaging import STATISTICS_IMAGES
from rjem_cli.engine.training.run import TEST_BATCH, TEST_PLAN
from rjem_cli.engine.training.schedule import total_steps
from rjem_cli.engine.training.trainer import PREVIEW_PER_CLASS, VALIDATION_IMAGES, Trainer

FEW, MORE = 1, 3  # moves of the steps that are timed, at least
SPENT = 4.0  # seconds that a timed step with more moves than MORE may take, about
TINY_RATE = 1e-12  # so that nothing diverges
FORWARD = 1 / 3  # of a pass forward and backward
COPIES_OF_WEIGHTS = {"sgd": 3, "adam": 4}  # in a state: their average and the optimizer's moments too
COPIES_WRITTEN = 2  # of a state, on its way to a file

StepSeconds = Callable[[int, int], float]  # of a step with so many moves of the attack and of the chain


class DataShape(NamedTuple):
    image_shape: tuple[int, int, int]
    classes: int
    train: int
    val: int
    test: int

    @classmethod
    def of(cls, options: DataOptions) -> DataShape:
        """Of published sets as their authors state it; others are read. Raises AbsentError or DataError."""
        if not options.data and options.dataset in STATED:
            known = STATED[options.dataset]
            return cls(known.image_shape, known.classes, *known.split(options.val_fraction), known.test)
        return cls.of_splits(load_splits(options))

    @classmethod
    def of_splits(cls, splits: Splits) -> DataShape:
        counts = (len(part) for part in (splits.train, splits.val, splits.test))
        return cls(splits.train.image_shape, len(splits.class_names), *counts)

    @property
    def dimensions(self) -> int:
        return math.prod(self.image_shape)


class Rehearsal(Trainer):
    """Of made-up images; no prior is fitted to them, nor kept."""

    def __init__(
        self, config: TrainConfig, shape: DataShape, prior: ClassGaussianPrior, runtime: Runtime, folder: Path
    ):
        self.made_prior = prior
        super().__init__(config, made_splits(shape, config.batch_size), runtime, folder, lambda progress: None)

    @property
    def prior(self) -> ClassGaussianPrior:  # type: ignore[override]
        return self.made_prior


@dataclass(frozen=True)
class Forecast:
    """`memory` in bytes, of the device, or of the process on a CPU, and how much there is of it; None where the system
    does not tell."""

    steps: int
    step_seconds: float
    other_seconds: float
    memory: int | None
    memory_there: int | None
    checkpoint: int  # bytes on disk, with its state

    @property
    def seconds(self) -> float:
        return self.steps * self.step_seconds + self.other_seconds


@torch.random.fork_rng()  # what runs after it draws as if it had not been
def forecast(config: TrainConfig, shape: DataShape, runtime: Runtime, done: int = 0) -> Forecast:
    """Of a run from the step `done` to its last: steps; pictures, validation and the final table; the most memory.
    Raises as training does."""
    before = peak_bytes(runtime.device)
    prior = made_prior(shape).to(runtime.device)
    attack, chain = config.pgd_steps * config.attacks, config.sgld_steps * bool(config.px_weight)
    with tempfile.TemporaryDirectory() as folder:

        def step_seconds(attack: int, chain: int) -> float:
            buffer_size = min(config.buffer_size, 2 * config.batch_size)
            short = replace(
                config,
                pgd_steps=attack,
                sgld_steps=max(1, chain),  # where none is taken none is allowed to be named
                steps=MOST_ROUNDS,
                buffer_size=buffer_size,
                lr=TINY_RATE,
            )
            trainer = Rehearsal(short, shape, prior, runtime, Path(folder))
            most = MOST_ROUNDS if runtime.ranks.world == 1 else ROUNDS  # all ranks take as many
            return max(runtime.ranks.each(usual_seconds(trainer.train_step, runtime.device, most)))

        step, a_move = extrapolated(step_seconds, attack, chain)
    last = total_steps(config, shape.train)
    a_pass = a_move / (min(config.batch_size, shape.train) // runtime.ranks.world)
    model = build_model(config, shape.image_shape[0], shape.classes).to(runtime.device)
    other = other_passes(config, shape, done, last) * a_pass + test_seconds(model, config, shape, runtime)
    weights, state = saved_bytes(model, config, shape)
    memory = peak_memory(config, shape, runtime, before, state)
    return Forecast(max(0, last - done), step, other, memory, total_bytes(runtime.device), weights + state)


def extrapolated(step_seconds: StepSeconds, attack: int, chain: int) -> tuple[float, float]:
    """(seconds of a step, seconds of one of its moves), from steps of few moves."""
    base = step_seconds(min(attack, FEW), min(chain, FEW))
    pair = alone = 0.0
    affordable = max(MORE, round(SPENT / base))
    if min(attack, chain) > FEW:
        more = min(affordable, attack, chain)
        pair = max(0.0, step_seconds(more, more) - base) / (more - FEW)
    if alone_moves(attack, chain):
        more = min(affordable, max(attack, chain))
        moves = (more, min(chain, FEW)) if attack > chain else (min(attack, FEW), more)
        alone = max(0.0, step_seconds(*moves) - base) / (more - FEW)
    step = base + max(0, min(attack, chain) - FEW) * pair + alone_moves(attack, chain) * alone
    return step, alone or pair / 2 or base


def alone_moves(attack: int, chain: int) -> int:
    """Moves of the longer one that no move of the other goes with, but for the first of all."""
    return max(attack, chain) - max(min(attack, chain), min(max(attack, chain), FEW))


def test_seconds(model: nn.Module, config: TrainConfig, shape: DataShape, runtime: Runtime) -> float:
    """Of the table at the end, which one rank makes, in the arithmetic of accuracies."""
    network = runtime.scoring().frozen(model)
    tested = min(config.eval_limit or shape.test, shape.test)
    size = min(TEST_BATCH, tested)
    a_pass = pass_seconds(network, shape.image_shape, size, runtime.device) / size
    return tested * (1 + TEST_PLAN.passes) * a_pass


def other_passes(config: TrainConfig, shape: DataShape, done: int, last: int) -> float:
    """Images through the network, forward and backward, outside the steps `done` to `last` and the table at the end."""
    drawn = PREVIEW_PER_CLASS * min(shape.classes, LARGEST_CLASS_COUNT)
    drawings = between(config.sample_every, done, last - 1)  # before the last, of all modes
    pictures = drawings * plan_of(config, "energy").gradient_steps
    pictures += sum(plan_of(config, mode).gradient_steps for mode in SAMPLE_MODES)
    looks = between(config.log_every, done, last) * (1 + FORWARD) * config.batch_size * bool(config.px_weight)
    saves = between(config.checkpoint_every, done, last) + 1
    checked = saves * min(shape.val, VALIDATION_IMAGES)
    if config.norm_layer == "batch":  # a validation and a checkpoint each refresh the average's statistics
        checked += (2 * saves + drawings + 1) * min(shape.train, STATISTICS_IMAGES)
    return drawn * pictures + looks + FORWARD * checked


def between(every: int, done: int, last: int) -> int:
    """How many multiples of `every` lie behind `done`, up to `last`."""
    return max(0, last // every - done // every)


def peak_memory(config: TrainConfig, shape: DataShape, runtime: Runtime, before: int | None, state: int) -> int | None:
    """The images, the whole buffer, and what takes more: the timed steps and a batch of the final table, as measured
    since `before`, or on the host a checkpoint that is being written, whose state has `state` bytes."""
    device = runtime.device
    measured = peak_bytes(device)
    if measured is None or before is None:
        return None
    images = (shape.train + shape.val + shape.test) * shape.dimensions
    on_host = device.type == "cpu"
    written, beside = state * COPIES_WRITTEN * on_host, BESIDE_PASSES * on_host
    return before + max(measured - before, written) + images + buffer_bytes(config, shape) + beside


def buffer_bytes(config: TrainConfig, shape: DataShape) -> int:
    return 4 * config.buffer_size * shape.dimensions * bool(config.px_weight)


def saved_bytes(model: nn.Module, config: TrainConfig, shape: DataShape) -> tuple[int, int]:
    """Of a checkpoint and of its state; BatchNorm's statistics are too few to count."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return weights, COPIES_OF_WEIGHTS[config.optimizer] * weights + buffer_bytes(config, shape)


def made_splits(shape: DataShape, batch_size: int) -> Splits:
    """Noise: as many images as a batch has, and two a class at least."""
    count = max(min(batch_size, shape.train), 2 * shape.classes)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, *shape.image_shape), generator=generator, dtype=torch.uint8)
    names = tuple(map(str, range(shape.classes)))
    images = ImageSet(pixels, torch.arange(count) % shape.classes, names)
    few = images.subset(torch.arange(min(2, count)))
    return Splits("noise", images, few, few)


def made_prior(shape: DataShape) -> ClassGaussianPrior:
    """With factors as large as those of the images' own prior."""
    rank = min(max(2, shape.train // shape.classes), shape.dimensions)
    factors = tuple(torch.full((shape.dimensions, rank), 1e-3) for _ in range(shape.classes))
    return ClassGaussianPrior(torch.zeros(shape.classes, shape.dimensions), factors, shape.image_shape)
