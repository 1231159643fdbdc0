"""How fast are chains, attacks, training, sampling and features, against a plain loop and against the device's peak?

rjem and the plain loop (plain_loop.py; for features, torch-fidelity's own call) take turns in one process. Each round
also measures the device's peak with a large convolution, so that other load on the machine slows all of them. Ratios
are medians over the rounds, with quartiles. The share of the peak counts the FLOPs of rjem's own network passes.

    python -m tests.benchmarks.speed                            WRN-16-2, batch 64
    python -m tests.benchmarks.speed --depth 28 --width 10 --batch-size 256 --device cuda --precision bf16
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.attacks.pgd import pgd
from rjem_cli.engine.metrics import extractors
from rjem_cli.engine.models.graphs import StepGraphs
from rjem_cli.engine.models.prior import ClassGaussianPrior
from rjem_cli.engine.runtime import Runtime, start_runtime
from rjem_cli.engine.sampling.pipeline import SamplePlan, build_sampler, prior_start
from rjem_cli.engine.sampling.sgld import sgld
from rjem_cli.engine.timing import synchronize
from rjem_cli.engine.training.estimate import DataShape, dummy_prior, dummy_splits
from rjem_cli.engine.training.trainer import Trainer
from tests.benchmarks.plain_loop import PlainLoop
from tests.random_inception import write_random_inception

SHAPE = DataShape((3, 32, 32), classes=10, train=45_000, val=5_000, test=10_000)
PEAK_CHANNELS, PEAK_SIDE = 256, 16
TASKS = ("sgld", "pgd", "training", "samples", "features")

Call = Callable[[], object]


@dataclass
class Task:
    """A call of rjem and one of the plain loop, for `units` of work each."""

    name: str
    unit: str
    units: int
    ours: Call
    plain: Call
    flops: int = 0
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"ours": [], "plain": []})
    peaks: list[float] = field(default_factory=list)

    def measure(self, device: torch.device, peak: Callable[[], float], order: tuple[str, str]) -> None:
        for name in order:
            self.seconds[name].append(time_call(getattr(self, name), device))
        self.peaks.append(peak())

    def result(self) -> dict[str, Any]:
        ours, plain = self.seconds["ours"], self.seconds["plain"]
        return {
            "task": self.name,
            "unit": self.unit,
            "ours": self.units / statistics.median(ours),
            "plain": self.units / statistics.median(plain),
            "ratio": quartiles([theirs / mine for mine, theirs in zip(ours, plain)]),
            "gflop": self.flops / 1e9,
            "share_of_peak": quartiles([self.flops / mine / peak for mine, peak in zip(ours, self.peaks)]),
            "peak_gflops": statistics.median(self.peaks) / 1e9,
        }


def time_call(call: Call, device: torch.device) -> float:
    """Seconds of one call."""
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - started


def quartiles(values: list[float]) -> list[float]:
    """First, median, third."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


class FlopCounter(TorchDispatchMode):
    """PyTorch's own formulas; its FlopCounterMode cannot follow gradients with respect to images."""

    total = 0
    formulas = flop_registry

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if formula := self.formulas.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def run_eagerly(graphs: StepGraphs, step: Callable[..., tuple[Tensor, ...]], *args: Any) -> tuple[Tensor, ...]:
    return step(*args)


def count_flops(call: Call) -> int:
    """Without CUDA graphs, whose operations the counter does not see."""
    with mock.patch.object(StepGraphs, "run", run_eagerly), FlopCounter() as counter:
        call()
    return counter.total


def build_peak(runtime: Runtime, batch_size: int) -> Callable[[], float]:
    """A function that measures the FLOP/s of a large convolution in the runtime's precision: the best of three."""
    device, dtype = runtime.device, runtime.dtype
    layer = nn.Conv2d(PEAK_CHANNELS, PEAK_CHANNELS, 3, padding=1, bias=False)
    layer = layer.to(device, dtype, memory_format=torch.channels_last)
    x = torch.randn(batch_size, PEAK_CHANNELS, PEAK_SIDE, PEAK_SIDE, device=device, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    repeats = 20 if device.type == "cuda" else 1

    @torch.no_grad()
    def convolve() -> None:
        with runtime.kernels.active():
            for _ in range(repeats):
                layer(x)

    flops = repeats * 2 * x.numel() * 9 * PEAK_CHANNELS
    return lambda: flops / min(time_call(convolve, device) for _ in range(3))


def build_trainer(config: TrainConfig, prior: ClassGaussianPrior, runtime: Runtime, folder: Path) -> Trainer:
    """On noise images. `prior` on the host."""
    splits, on_device = dummy_splits(SHAPE, config.batch_size), prior.to(runtime.device)
    return Trainer(config, splits, runtime, folder, fit_prior=lambda: on_device)


def network_tasks(config: TrainConfig, runtime: Runtime, folder: Path, steps: int) -> dict[str, Task]:
    """On the same number of images and the same network. Each call takes `steps` of a chain or an attack."""
    prior, device, count = dummy_prior(SHAPE, variance=1), runtime.device, config.batch_size
    trainer = build_trainer(config, prior, runtime, folder)
    plain = PlainLoop(config, prior, device)
    batch, frozen = trainer.next_batch(), runtime.frozen(trainer.model)
    images = dummy_splits(SHAPE, count).train
    pixels, host_labels = images.pixels[:count], images.labels[:count]
    x, labels = batch.x.contiguous(), batch.labels
    step_size = config.sgld_step_size * config.inner_steps
    sampler = build_sampler(SamplePlan.from_config(config, "energy"), prior_start(trainer.prior), frozen)
    wanted, seeds = torch.arange(count) % SHAPE.classes, torch.arange(count, device=device)

    def chain() -> Tensor:
        return sgld(frozen, batch.x, steps=steps, step_size=step_size)

    def attack() -> Tensor:
        return pgd(frozen, batch.x, labels, eps=config.adv_eps, steps=steps)

    return {
        "sgld": Task("SGLD", "steps/s", steps, chain, lambda: plain.sgld(x, steps)),
        "pgd": Task("PGD", "steps/s", steps, attack, lambda: plain.pgd(x, labels, steps)),
        "training": Task(
            f"training, {config.pgd_steps} + {config.sgld_steps} steps",
            "images/s",
            count,
            trainer.train_step,
            lambda: plain.train_step(pixels, host_labels),
        ),
        "samples": Task(
            f"samples, m = {config.sample_steps}",
            "images/s",
            count,
            lambda: sampler(wanted, seeds),
            lambda: plain.sgld(plain.prior_starts(count).to(device), config.sample_steps),
        ),
    }


def feature_task(device: torch.device, folder: Path) -> Task:
    """InceptionV3 with random weights; the plain call has torch-fidelity's batch of 64."""
    content = write_random_inception(folder / "inception.pth").read_bytes()
    ours = extractors.load_inception(content, "random", device)
    theirs = extractors.build_inception(extractors.parse_weights(content, "random"), "random").to(device)
    batch_size = extractors.BATCH_SIZE.get(device.type, extractors.GPU_BATCH_SIZE)
    count = 64 * max(1, batch_size // 64)
    pixels = dummy_splits(SHAPE, count).train.pixels.to(device)

    @torch.no_grad()
    def extract() -> None:
        for part in pixels.split(batch_size):
            ours.compute(part)

    @torch.no_grad()
    def fidelity() -> None:
        for part in pixels.split(64):
            theirs(part)

    return Task("Inception features", "images/s", count, extract, fidelity)


def measure_tasks(config: TrainConfig, runtime: Runtime, names: list[str], steps: int, rounds: int) -> list[Task]:
    """Each task once to warm up, then `rounds` times, with rjem and the plain loop first in turn."""
    with tempfile.TemporaryDirectory() as folder:
        tasks = network_tasks(config, runtime, Path(folder), steps) if set(names) - {"features"} else {}
        if "features" in names:
            tasks["features"] = feature_task(runtime.device, Path(folder))
        selected, peak = [tasks[name] for name in names], build_peak(runtime, config.batch_size)
        for task in selected:
            task.plain()
            task.flops = count_flops(task.ours)
            for number in range(rounds):
                task.measure(runtime.device, peak, ("plain", "ours") if number % 2 else ("ours", "plain"))
        return selected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--width", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--pgd-steps", type=int, default=15)
    parser.add_argument("--sgld-steps", type=int, default=10)
    parser.add_argument("--chain", type=int, default=3, help="steps of a chain or an attack timed by itself")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction)
    parser.add_argument("--only", default=",".join(TASKS), help="a subset of %(default)s")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    options = parser.parse_args()
    names = ("depth", "width", "batch_size", "pgd_steps", "sgld_steps", "device", "precision", "compile")
    config = TrainConfig(**{name: getattr(options, name) for name in names}, ema_decay=0.99)
    runtime = start_runtime(config)
    tasks = measure_tasks(config, runtime, options.only.split(","), options.chain, options.rounds)
    where = f"{runtime.describe()}, {torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}"
    print(f"WRN-{config.depth}-{config.width}, batch {config.batch_size}; {where}; {options.rounds} rounds")
    print("task\tours\tplain\tunit\tratio (quartiles)\tshare of the peak (quartiles)\tpeak, GFLOP/s")
    results = [task.result() for task in tasks]
    for each in results:
        ratio, share = ("{1:.2f} ({0:.2f}-{2:.2f})".format(*each[key]) for key in ("ratio", "share_of_peak"))
        print(
            f"{each['task']}\t{each['ours']:.3g}\t{each['plain']:.3g}\t{each['unit']}\t{ratio}\t{share}\t{each['peak_gflops']:.0f}"
        )
    if options.json:
        options.json.write_text(json.dumps({"where": where, "config": config.to_dict(), "tasks": results}, indent=2))


if __name__ == "__main__":
    main()
