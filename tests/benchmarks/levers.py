"""What does each lever of rjem's speed bring by itself?

Runs the same work with and without one lever, in turns, in one process. Prints medians of the ratio, with quartiles. A
lever that brings nothing on a device is not used there, or only with its flag.

    python -m tests.benchmarks.levers [--depth 28 --width 10 --batch-size 256 --device cuda] [--compile]
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.gradients import LogitsFn, value_and_grad
from rjem_cli.engine.models.energy import energy
from rjem_cli.engine.models.frozen import FrozenLogits
from rjem_cli.engine.networks import wide_resnet
from rjem_cli.engine.runtime import M_MMAP_MAX, M_TRIM_THRESHOLD, Runtime, keep_freed_memory, start_runtime
from rjem_cli.engine.training.estimate import dummy_prior
from rjem_cli.engine.training.replay_buffer import sample_prior
from rjem_cli.engine.training.trainer import Trainer, TrainingForward
from tests.benchmarks.plain_loop import PlainLoop
from tests.benchmarks.speed import SHAPE, Call, build_trainer, quartiles, time_call

M_MMAP_THRESHOLD = -3  # of malloc.h, as those of runtime.py
# glibc's own settings after its largest blocks were freed
GLIBC_DEFAULTS = {M_MMAP_MAX: 65536, M_TRIM_THRESHOLD: 2**26, M_MMAP_THRESHOLD: 2**25}


class Lever(NamedTuple):
    name: str
    of: str
    used: Call
    unused: Call


@contextmanager
def without_inplace() -> Iterator[None]:
    """No activation is computed in place."""
    activate = wide_resnet.activate
    wide_resnet.activate = lambda x_BCHW, inplace=True: activate(x_BCHW, inplace=False)
    try:
        yield
    finally:
        wide_resnet.activate = activate


@contextmanager
def with_glibc_defaults() -> Iterator[None]:
    """Freed memory returns to the system."""
    glibc = ctypes.CDLL(None)
    for parameter, value in GLIBC_DEFAULTS.items():
        glibc.mallopt(parameter, value)
    try:
        yield
    finally:
        keep_freed_memory()


def inside(context: Callable[[], AbstractContextManager[None]], call: Call) -> Call:
    def call_inside() -> None:
        with context():
            call()

    return call_inside


def chain_levers(trainer: Trainer, plain: PlainLoop, compiled: bool) -> Iterator[Lever]:
    """Levers of one gradient of E(x)."""
    batch, runtime, model = trainer.next_batch(), trainer.runtime, trainer.model
    x, frozen = batch.x, runtime.frozen(model)

    def gradient(logits_fn: LogitsFn) -> Call:
        return lambda: value_and_grad(logits_fn, energy, x)

    freeze = partial(FrozenLogits, model, kernels=runtime.kernels)
    one_inner = copy.copy(plain)
    one_inner.config = replace(plain.config, inner_steps=1)
    yield Lever("inner loop in closed form", "SGLD step", lambda: one_inner.sgld(x, 1), lambda: plain.sgld(x, 1))
    with_norms = copy.deepcopy(model).eval().requires_grad_(False)
    yield Lever("BatchNorm folded", "gradient", gradient(freeze()), gradient(with_norms))
    by_planes = freeze()
    by_planes.network.to(memory_format=torch.contiguous_format)
    yield Lever("channels last", "gradient", gradient(freeze()), gradient(by_planes))
    yield Lever("activations in place", "gradient", gradient(frozen), inside(without_inplace, gradient(frozen)))
    in_bf16 = freeze(torch.bfloat16)
    yield Lever("bf16 throughout", "gradient", gradient(in_bf16), gradient(freeze()))
    in_autocast = replace(runtime, precision="bf16").logits(with_norms)
    yield Lever("bf16 copy, not autocast", "gradient", gradient(in_bf16), gradient(in_autocast))
    if compiled:
        yield Lever("compiled", "gradient", gradient(freeze(frozen.dtype, compiled=True)), gradient(frozen))


def training_levers(trainer: Trainer, plain: PlainLoop) -> Iterator[Lever]:
    batch, model, runtime = trainer.next_batch(), trainer.model, trainer.runtime
    images = (batch.x, batch.x_energy, batch.x.flip(3))

    def losses(training_forward: nn.Module) -> Call:
        def compute_gradients() -> None:
            model.zero_grad(set_to_none=True)
            with runtime.kernels.active():
                torch.stack([logits_BK.square().mean() for logits_BK in training_forward(*images)]).sum().backward()

        return compute_gradients

    joint, separate = (TrainingForward(model, runtime.logits(model), joint).train() for joint in (True, False))
    yield Lever("one pass for x_adv, x and x_q", "loss pass", losses(joint), losses(separate))
    yield Lever("activations in place", "loss pass", losses(joint), inside(without_inplace, losses(joint)))
    if sys.platform == "linux" and runtime.device.type == "cpu":
        yield Lever("freed memory is kept", "loss pass", losses(joint), inside(with_glibc_defaults, losses(joint)))
    fused = torch.optim.SGD(model.parameters(), lr=1e-12, momentum=0.9, fused=True)
    yield Lever("fused SGD", "update", fused.step, trainer.optimizer.step)
    generator, count = torch.Generator(), len(batch.x)
    restarted = max(1, round(count * trainer.config.reinit_prob))
    yield Lever(
        "prior samples for restarts only, in one batch",
        "sampling",
        lambda: sample_prior(trainer.prior, restarted, generator),
        lambda: plain.prior_starts(count),
    )


def measure_lever(lever: Lever, rounds: int, device: torch.device) -> list[float]:
    """Seconds without the lever divided by seconds with it: first quartile, median, third quartile."""
    calls = {"used": lever.used, "unused": lever.unused}
    ratios = []
    for number in range(rounds + 1):
        order = ("used", "unused") if number % 2 else ("unused", "used")
        seconds = {name: time_call(calls[name], device) for name in order}
        ratios.append(seconds["unused"] / seconds["used"])
    return quartiles(ratios[1:])  # the first round warms up


def all_levers(config: TrainConfig, runtime: Runtime, folder: Path, compiled: bool) -> Iterator[Lever]:
    prior = dummy_prior(SHAPE, variance=1)
    trainer = build_trainer(config, prior, runtime, folder)
    plain = PlainLoop(config, prior, runtime.device)
    yield from chain_levers(trainer, plain, compiled)
    yield from training_levers(trainer, plain)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    for name, default in {"depth": 16, "width": 2, "batch_size": 64}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    options = parser.parse_args()
    names = ("depth", "width", "batch_size", "device")
    config = TrainConfig(**{name: getattr(options, name) for name in names}, lr=1e-12, cuda_graphs=False)
    runtime = start_runtime(config)
    network = f"WRN-{config.depth}-{config.width}, batch {config.batch_size}"
    print(f"{network}; {runtime.describe()}; {options.rounds} rounds")
    print("lever\tof\ttimes as fast with it (quartiles)")
    with tempfile.TemporaryDirectory() as folder:
        for lever in all_levers(config, runtime, Path(folder), options.compile):
            low, median, high = measure_lever(lever, options.rounds, runtime.device)
            print(f"{lever.name}\t{lever.of}\t{median:.2f} ({low:.2f}-{high:.2f})", flush=True)


if __name__ == "__main__":
    main()
