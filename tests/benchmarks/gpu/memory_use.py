"""The peak memory of training steps and of sampling, beside the estimate of `rjem train --dry-run`; the largest batch
of a gradient; and whether work continues in smaller batches after an out-of-memory error."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.data.images import ImageSet, Splits
from rjem_cli.engine.gradients import LogitsFn, value_and_grad
from rjem_cli.engine.models.energy import energy
from rjem_cli.engine.models.frozen import FrozenLogits
from rjem_cli.engine.models.graphs import EAGER_RUNS
from rjem_cli.engine.networks.build import build_model, place
from rjem_cli.engine.runtime import start_runtime
from rjem_cli.engine.sampling.pipeline import SamplePlan, build_sampler, prior_start
from rjem_cli.engine.timing import find_batch_size
from rjem_cli.engine.training.estimate import dummy_prior, dummy_splits, estimate_training
from rjem_cli.engine.training.trainer import Trainer
from rjem_cli.errors import is_out_of_memory
from tests.benchmarks.gpu.parts import Bench, Row
from tests.benchmarks.gpu.sizes import Network
from tests.benchmarks.speed import SHAPE

MB = 1e6
SAMPLE_STEPS = EAGER_RUNS + 2  # so that graphs are recorded and replayed
LIMITED_IMAGES, LIMITED_BYTES = 2048, 2 * 2**30  # so many images need more than that in a gradient of WRN-16-4
BISECTIONS = 3
TOLERANCE = 1e-4  # of gradients over the largest: another batch size may take another algorithm


def run(bench: Bench) -> None:
    bench.need_cuda("the peak memory of a CPU process cannot be reset")
    labels = {"what": "out-of-memory error", "network": str(bench.sizes.rank_network), "precision": "fp32"}
    bench.measure(labels, partial(run_out_of_memory, bench))
    for network in bench.sizes.networks:
        labels = {"what": "largest batch of a gradient", "network": str(network), "precision": "bf16"}
        bench.measure(labels, partial(find_largest, bench, network, "bf16"))
    for batch in bench.sizes.memory_batches:
        for network in bench.sizes.networks:
            for precision in bench.precisions[::-1]:
                labels = {"what": "peak", "network": str(network), "precision": precision, "batch": batch}
                bench.measure(labels, partial(measure_if_it_fits, bench, network, precision, batch))


# --- peaks ---


def reset(bench: Bench) -> None:
    torch.cuda.synchronize(bench.device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(bench.device)


def measure_if_it_fits(bench: Bench, network: Network, precision: str, batch: int) -> Row:
    try:
        return {"fits": True, **measure_peaks(bench, network, precision, batch)}
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    return {"fits": False}


def measure_peaks(bench: Bench, network: Network, precision: str, batch: int) -> Row:
    """In MB, of a training run with the images and the buffer of CIFAR-10, and of samples with its network."""
    sizes = bench.sizes
    options = {"pgd_steps": sizes.pgd_steps, "sgld_steps": sizes.sgld_steps, "sample_steps": SAMPLE_STEPS}
    config = network.config(batch, precision, str(bench.device), buffer_size=sizes.buffer_size, **options)
    runtime = start_runtime(config)
    reset(bench)
    estimate = estimate_training(config, SHAPE, runtime).memory or 0
    reset(bench)
    prior = dummy_prior(SHAPE, config.prior_variance)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, noise_splits(bench, batch), runtime, Path(folder), lambda: prior)
        for _ in range(2):
            trainer.train_step()
    training = torch.cuda.max_memory_reserved(bench.device)
    model, device_prior = trainer.model, trainer.prior
    del trainer
    reset(bench)
    sampler = build_sampler(SamplePlan.from_config(config, "energy"), prior_start(device_prior), runtime.frozen(model))
    sampler(torch.arange(batch) % SHAPE.classes, torch.arange(batch, device=bench.device))
    sampling = torch.cuda.max_memory_reserved(bench.device)
    return {
        "training MB": training / MB,
        "estimated MB": estimate / MB,
        "estimated / training": estimate / training if training else None,
        "sampling MB": sampling / MB,
    }


def noise_splits(bench: Bench, batch: int) -> Splits:
    """As many images as CIFAR-10 has for training, at full size."""
    few = dummy_splits(SHAPE, batch)
    if bench.sizes.buffer_size < SHAPE.train // 10:
        return few
    pixels = torch.zeros(SHAPE.train, *SHAPE.image_shape, dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(SHAPE.train) % SHAPE.classes, few.train.class_names)
    return Splits("zeros", images, few.val, few.test)


# --- the largest batch ---


def build_frozen(bench: Bench, network: Network, precision: str) -> FrozenLogits:
    """Without graphs, which keep memory, and without algorithms that are timed for each shape."""
    config = network.config(1, precision, str(bench.device))
    runtime = start_runtime(config)
    model = place(build_model(config, channels=SHAPE.image_shape[0], num_classes=SHAPE.classes), bench.device)
    return FrozenLogits(model, runtime.dtype, kernels=replace(runtime.kernels, reproducible=True))


def find_largest(bench: Bench, network: Network, precision: str) -> Row:
    """By halving, as rjem does, then by bisection between that and its double."""
    reset(bench)
    frozen = build_frozen(bench, network, precision)
    batches = BatchSizer(bench.sizes.largest_batch)
    fits = find_batch_size(frozen, SHAPE.image_shape, batches, bench.device)
    peak = torch.cuda.max_memory_reserved(bench.device)
    too_many, halved = 2 * fits, fits
    for _ in range(BISECTIONS if fits < bench.sizes.largest_batch else 0):
        middle = (fits + too_many) // 2
        if is_within_memory(frozen, middle, bench):
            fits = middle
        else:
            too_many = middle
    return {"batch": fits, "by halving": halved, "peak MB": peak / MB}


def is_within_memory(frozen: LogitsFn, count: int, bench: Bench) -> bool:
    try:
        value_and_grad(frozen, energy, torch.zeros(count, *SHAPE.image_shape, device=bench.device))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        fits = False
    else:
        fits = True
    reset(bench)
    return fits


# --- after an out-of-memory error ---


def run_out_of_memory(bench: Bench) -> Row:
    """BatchSizer within a small share of the memory, against batches that fit. Raises AssertionError for batches that
    were not halved, or for other gradients."""
    bench.need_cuda("needs CUDA", pretend_too=False)
    network, count = bench.sizes.rank_network, LIMITED_IMAGES if bench.sizes.largest_batch > 1000 else 32
    frozen, log = build_frozen(bench, network, "fp32"), []
    x = torch.rand(count, *SHAPE.image_shape).to(bench.device)

    def work(rows: Tensor) -> tuple[Tensor]:
        return (value_and_grad(frozen, energy, rows).gradient,)

    (expected,) = BatchSizer(16).run(work, x)
    reset(bench)
    total = torch.cuda.get_device_properties(bench.device).total_memory
    allowed = torch.cuda.memory_allocated(bench.device) + LIMITED_BYTES
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total))  # of the current device
    try:
        batches = BatchSizer(count, log.append)
        (found,) = batches.run(work, x)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    difference = float((found - expected).abs().max() / expected.abs().max())
    assert log, f"{count} images fit into {LIMITED_BYTES / 2**30:.0f} GiB: nothing was halved"
    assert difference <= TOLERANCE, f"gradients differ by {difference:.2g} of the largest"
    bench.note(f"With {LIMITED_BYTES / 2**30:.0f} GiB: {'; '.join(log)}")
    return {"batch": batches.max_batch_size, "halved": len(log)}
