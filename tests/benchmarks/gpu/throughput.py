"""Steps per second of chains, attacks and training, and their share of what the device can do.

Two peaks are measured beside each row: a large matrix product and a large convolution in the same precision. The FLOPs
are those of the network passes, counted without computing them. The plain loop is not among these; it is in
tests/benchmarks/speed.py.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.attacks.pgd import pgd
from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.gradients import value_and_grad
from rjem_cli.engine.models.energy import energy
from rjem_cli.engine.models.frozen import FrozenLogits
from rjem_cli.engine.networks.build import build_model
from rjem_cli.engine.networks.wide_resnet import WideResNet
from rjem_cli.engine.runtime import Runtime, start_runtime
from rjem_cli.engine.sampling.sgld import sgld
from rjem_cli.engine.training.estimate import dummy_prior
from tests.benchmarks.gpu.parts import Bench, Row
from tests.benchmarks.gpu.sizes import Network
from tests.benchmarks.gpu.timing import interleave, matmul_peak, medians
from tests.benchmarks.speed import SHAPE, Call, build_peak, build_trainer, count_flops

PEAK_BATCH = 256
CHAIN = 5  # steps of a chain or an attack in one call


def run(bench: Bench) -> None:
    """The larger batches first: they use the device best."""
    sizes = bench.sizes
    rows = [
        (batch, network, precision)
        for batch in sizes.speed_batches
        for network in sizes.networks
        for precision in bench.precisions[::-1]
    ]
    for index, (batch, network, precision) in enumerate(rows):
        seconds = bench.seconds_left() / (len(rows) - index)
        labels = {"network": str(network), "precision": precision, "batch asked for": batch}
        bench.measure(labels, partial(measure_largest, bench, network, batch, precision, seconds))


def measure_largest(bench: Bench, network: Network, batch: int, precision: str, seconds: float) -> Row:
    """With the largest batch that fits."""
    batches = BatchSizer(batch, lambda text: bench.note(f"{network}, {precision}: {text}"))
    return batches.run_largest(lambda count: measure(bench, network, count, precision, seconds))


def measure(bench: Bench, network: Network, batch: int, precision: str, seconds: float) -> Row:
    """About half of `seconds` goes into building and warming up."""
    sizes = bench.sizes
    config = network.config(
        batch, precision, str(bench.device), pgd_steps=sizes.pgd_steps, sgld_steps=sizes.sgld_steps, warmup_steps=0
    )
    runtime = start_runtime(config)
    with tempfile.TemporaryDirectory() as folder:
        calls = build_calls(config, runtime, Path(folder))
        times = medians(interleave(calls, bench.device, seconds / 2, sizes.rounds))
    with runtime.kernels.active():
        matmul = matmul_peak(runtime, sizes.matrix_side)()
        convolution = build_peak(runtime, min(PEAK_BATCH, 32 * sizes.speed_batches[0]))()
    gradient, loss_pass = flops_per_image(network)
    chain_rate = CHAIN * batch * gradient / times["sgld"]
    step_rate = batch * ((sizes.pgd_steps + sizes.sgld_steps) * gradient + 3 * loss_pass) / times["training"]
    return {
        "batch": batch,
        "PGD steps/s": CHAIN / times["pgd"],
        "SGLD steps/s": CHAIN / times["sgld"],
        "training steps/s": 1 / times["training"],
        "training images/s": batch / times["training"],
        "chain TFLOP/s": chain_rate / 1e12,
        "training TFLOP/s": step_rate / 1e12,
        "matmul TFLOP/s": matmul / 1e12,
        "convolution TFLOP/s": convolution / 1e12,
        "chain, share of matmul": chain_rate / matmul,
        "chain, share of convolution": chain_rate / convolution,
        "training, share of convolution": step_rate / convolution,
    }


def build_calls(config: TrainConfig, runtime: Runtime, folder: Path) -> dict[str, Call]:
    """CHAIN steps of an attack and of a chain, and a training step."""
    trainer = build_trainer(config, dummy_prior(SHAPE, config.prior_variance), runtime, folder)
    batch, frozen = trainer.next_batch(), runtime.frozen(trainer.model)
    step_size = config.sgld_step_size * config.inner_steps
    return {
        "pgd": partial(pgd, frozen, batch.x, batch.labels, eps=config.adv_eps, steps=CHAIN),
        "sgld": partial(sgld, frozen, batch.x, steps=CHAIN, step_size=step_size),
        "training": trainer.train_step,
    }


def flops_per_image(network: Network) -> tuple[int, int]:
    """Of a gradient with respect to the image, and of a loss pass forward and backward."""
    model = build_model(network.config(1, "fp32", "cpu"), channels=3, num_classes=SHAPE.classes).to("meta")
    x = torch.zeros(1, *SHAPE.image_shape, device="meta")
    frozen = FrozenLogits(model)
    return count_flops(lambda: value_and_grad(frozen, energy, x)), count_flops(lambda: loss_pass(model, x))


def loss_pass(model: WideResNet, x: Tensor) -> None:
    model.zero_grad(set_to_none=True)
    energy(model(x)).sum().backward()
