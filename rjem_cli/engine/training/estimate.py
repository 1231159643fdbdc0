"""Estimates the time, memory and disk space of a run on this device, from the times of a short step and of a gradient
pass on random images of the right shape."""

import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from rjem_cli.config.common import SAMPLE_MODES
from rjem_cli.config.training import DataOptions, TrainConfig
from rjem_cli.engine.data.downloads import DATASET_INFO
from rjem_cli.engine.data.images import ImageSet, Splits
from rjem_cli.engine.data.load import load_splits
from rjem_cli.engine.memory import PROCESS_BYTES, peak_bytes, total_bytes
from rjem_cli.engine.models.graphs import EAGER_RUNS
from rjem_cli.engine.models.prior import ClassGaussianPrior
from rjem_cli.engine.runtime import Runtime
from rjem_cli.engine.sampling.generate import GRID_CLASSES
from rjem_cli.engine.sampling.pipeline import SamplePlan
from rjem_cli.engine.timing import FORWARD, MAX_CALLS, median_seconds, time_pass
from rjem_cli.engine.training.evaluation import GRID_PER_CLASS, TEST_BATCH, TEST_PLAN, VALIDATION_IMAGES
from rjem_cli.engine.training.optimizer import STATISTICS_IMAGES, total_steps
from rjem_cli.engine.training.trainer import Trainer

RANK_SHARE = 0.2  # of all components of photographs, for 99 % of their variance
TINY_RATE = 1e-12  # so that nothing diverges
WEIGHTS_PER_STATE = {"sgd": 3, "adam": 4}  # weights, EMA, and the optimizer's moments
COPIES_WRITTEN = 2  # of a state, while it is written


class DataShape(NamedTuple):
    image_shape: tuple[int, int, int]
    classes: int
    train: int
    val: int
    test: int
    read_summary: str = ""  # of what was read of a user's images

    @classmethod
    def from_options(cls, options: DataOptions) -> "DataShape":
        """Published data sets are not read, others are. Raises AbsentError or DataError."""
        if not options.data and options.dataset in DATASET_INFO:
            info, size = DATASET_INFO[options.dataset], options.image_size
            shape = info.image_shape if size is None else (info.image_shape[0], size, size)
            train, val = info.split(options.val_fraction)
            return cls(shape, info.classes, train, val, info.test)
        return cls.from_splits(load_splits(options))

    @classmethod
    def from_splits(cls, splits: Splits) -> "DataShape":
        train, val, test = (len(part) for part in (splits.train, splits.val, splits.test))
        return cls(splits.train.image_shape, len(splits.class_names), train, val, test, splits.read_summary)

    @property
    def dimensions(self) -> int:
        return math.prod(self.image_shape)


@dataclass(frozen=True)
class TrainingEstimate:
    """`memory` and `total_memory` in bytes, of the GPU, or of the process and the machine; None if the system does not
    report them. `checkpoint`: bytes on disk, with its state."""

    steps: int
    step_seconds: float
    other_seconds: float
    memory: int | None
    total_memory: int | None
    checkpoint: int

    @property
    def seconds(self) -> float:
        return self.steps * self.step_seconds + self.other_seconds


@torch.random.fork_rng(devices=[])  # an estimate does not change later random numbers
def estimate_training(config: TrainConfig, shape: DataShape, runtime: Runtime, done: int = 0) -> TrainingEstimate:
    """The estimate for a run from step `done` to its last, with sample grids, validation and the evaluation at its end.
    Raises as training does."""
    memory_before, prior = peak_bytes(runtime.device), dummy_prior(shape, config.prior_variance)
    attack_steps, chain_steps = config.pgd_steps * config.attacks, config.sgld_steps * bool(config.px_weight)
    short = replace(
        config,
        pgd_steps=min(1, attack_steps),
        sgld_steps=1,
        steps=MAX_CALLS + EAGER_RUNS,
        buffer_size=min(config.buffer_size, 2 * config.batch_size),
        lr=TINY_RATE,
    )
    with tempfile.TemporaryDirectory() as folder:
        splits = dummy_splits(shape, config.batch_size)
        trainer = Trainer(short, splits, runtime, Path(folder), lambda: prior)
        for _ in range(EAGER_RUNS if runtime.graphs else 0):  # so that graphs are timed
            trainer.train_step()
        short_step = median_seconds(trainer.train_step, runtime.device)
    pass_of_batch = time_pass(trainer.frozen, shape.image_shape, trainer.batch_size, runtime.device)
    longer = max(0, attack_steps - 1) + max(0, chain_steps - 1)
    steps = total_steps(config, shape.train)
    other = count_other_passes(config, shape, done, steps) * pass_of_batch / trainer.batch_size
    tested = min(config.eval_limit or shape.test, shape.test)
    batch_size = min(TEST_BATCH, tested)
    network = runtime.scoring().frozen(trainer.model)
    test_pass = time_pass(network, shape.image_shape, batch_size, runtime.device) / batch_size
    weights = sum(parameter.nbytes for parameter in trainer.model.parameters())
    buffer = 4 * config.buffer_size * shape.dimensions * bool(config.px_weight)
    state = WEIGHTS_PER_STATE[config.optimizer] * weights + buffer
    return TrainingEstimate(
        steps=max(0, steps - done),
        step_seconds=short_step + longer * pass_of_batch,
        other_seconds=other + tested * (1 + TEST_PLAN.passes) * test_pass,
        memory=estimate_memory(shape, runtime.device, memory_before, buffer, state),
        total_memory=total_bytes(runtime.device),
        checkpoint=weights + state + sum(tensor.nbytes for tensor in prior.to_tensors().values()),
    )


def count_other_passes(config: TrainConfig, shape: DataShape, done: int, steps: int) -> float:
    """Images that pass forward and backward through the network outside of training steps and the last evaluation."""
    samples = GRID_PER_CLASS * min(shape.classes, GRID_CLASSES)
    grids = count_multiples(config.sample_every, done, steps - 1)  # one with all modes comes after the last step
    sampling = grids * SamplePlan.from_config(config, "energy").gradient_steps
    sampling += sum(SamplePlan.from_config(config, mode).gradient_steps for mode in SAMPLE_MODES)
    lines = count_multiples(config.log_every, done, steps)
    energies = lines * (1 + FORWARD) * config.batch_size * bool(config.px_weight)
    saves = count_multiples(config.checkpoint_every, done, steps) + 1
    forward = saves * min(shape.val, VALIDATION_IMAGES)
    if config.norm_layer == "batch":  # each validation, checkpoint and grid refreshes the EMA's statistics
        forward += (2 * saves + grids + 1) * min(shape.train, STATISTICS_IMAGES)
    return samples * sampling + energies + FORWARD * forward


def count_multiples(every: int, done: int, last: int) -> int:
    """Multiples of `every` after `done`, up to `last`."""
    return max(0, last // every - done // every)


def estimate_memory(shape: DataShape, device: torch.device, before: int | None, buffer: int, state: int) -> int | None:
    """Bytes of the images, of the whole buffer, and of the timed passes (measured since `before`) or, on a CPU, of a
    checkpoint while it is written, if that is more."""
    peak = peak_bytes(device)
    if peak is None or before is None:
        return None
    images = (shape.train + shape.val + shape.test) * shape.dimensions
    on_host = device.type == "cpu"
    return before + max(peak - before, COPIES_WRITTEN * state * on_host) + images + buffer + PROCESS_BYTES * on_host


def dummy_splits(shape: DataShape, batch_size: int) -> Splits:
    """A batch of noise, with at least two images per class."""
    count = max(min(batch_size, shape.train), 2 * shape.classes)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, *shape.image_shape), generator=generator, dtype=torch.uint8)
    names = tuple(map(str, range(shape.classes)))
    images = ImageSet(pixels, torch.arange(count) % shape.classes, names)
    few = images.subset(torch.arange(min(2, count)))
    return Splits("noise", images, few, few)


def dummy_prior(shape: DataShape, variance: float) -> ClassGaussianPrior:
    """A prior with factors of about the size that the images' prior has."""
    rank = min(max(2, shape.train // shape.classes), shape.dimensions)
    rank = rank if variance == 1 else max(1, round(RANK_SHARE * rank))
    factors = tuple(torch.full((shape.dimensions, rank), 1e-3) for _ in range(shape.classes))
    return ClassGaussianPrior(torch.zeros(shape.classes, shape.dimensions), factors, shape.image_shape)
