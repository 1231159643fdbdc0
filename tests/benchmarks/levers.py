"""What each lever of rjem's speed brings alone.

The same work with one lever and without it, in turns, in one process: medians of the ratio, with quartiles. What brings
nothing on a device is not used there, or is left to its flag.

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
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from rjem_cli.config import TrainConfig
from rjem_cli.engine.attacks.pgd import pgd
from rjem_cli.engine.models import wide_resnet
from rjem_cli.engine.models.energy import energy
from rjem_cli.engine.models.frozen import FrozenLogits
from rjem_cli.engine.moves import Network, Question, ask, together
from rjem_cli.engine.runtime import M_MMAP_MAX, M_TRIM_THRESHOLD, Runtime, keep_freed_memory, start_runtime
from rjem_cli.engine.sampling.sgld import sgld
from rjem_cli.engine.timing import seconds_of
from rjem_cli.engine.training.estimate import Rehearsal, dummy_prior
from rjem_cli.engine.training.loss_pass import LossPass
from rjem_cli.engine.training.replay_buffer import draw_from_prior
from rjem_cli.engine.training.trainer import Trainer
from tests.benchmarks.plain_loop import PlainLoop
from tests.benchmarks.speed import SHAPE, Call, quartiles

M_MMAP_THRESHOLD = -3  # of malloc.h, as those of runtime.py
# what glibc comes to by itself once its largest blocks were freed
GLIBC_DEFAULTS = {M_MMAP_MAX: 65536, M_TRIM_THRESHOLD: 2**26, M_MMAP_THRESHOLD: 2**25}


class Lever(NamedTuple):
    name: str
    of: str
    used: Call
    unused: Call


@contextmanager
def activations_apart() -> Iterator[None]:
    """As if none took the place of what it is of."""
    in_place = wide_resnet.activated
    wide_resnet.activated = lambda x_BCHW, own=True: in_place(x_BCHW, own=False)
    try:
        yield
    finally:
        wide_resnet.activated = in_place


@contextmanager
def memory_given_back() -> Iterator[None]:
    """As glibc does of itself."""
    glibc = ctypes.CDLL(None)
    for parameter, value in GLIBC_DEFAULTS.items():
        glibc.mallopt(parameter, value)
    try:
        yield
    finally:
        keep_freed_memory()


def within(context: Callable[[], AbstractContextManager[None]], call: Call) -> Call:
    def work() -> None:
        with context():
            call()

    return work


def chain_levers(trainer: Trainer, plain: PlainLoop, compiled: bool) -> Iterator[Lever]:
    """Of one gradient of E(x), or of a few moves."""
    batch, runtime, model = trainer.next_batch(), trainer.runtime, trainer.model
    x, frozen = batch.x, runtime.frozen(model)

    def gradient(network: Network) -> Call:
        return lambda: ask(network, [Question(x, energy)])

    def moves(shared: bool) -> Call:
        attack, chain = {"eps": 0.1, "steps": 2}, {"sgld_steps": 2, "step_size": 1.0}
        return lambda: together(frozen, pgd(x, batch.labels, **attack), sgld(energy, x, **chain), shared=shared)

    one_inner = copy.copy(plain)
    one_inner.config = replace(plain.config, inner_steps=1)
    yield Lever("inner loop in closed form", "SGLD step", lambda: one_inner.sgld(x, 1), lambda: plain.sgld(x, 1))
    with_norms = copy.deepcopy(model).eval().requires_grad_(False)
    yield Lever("BatchNorm folded", "gradient", gradient(FrozenLogits(model)), gradient(with_norms))
    by_planes = FrozenLogits(model)
    by_planes.network.to(memory_format=torch.contiguous_format)
    yield Lever("channels last", "gradient", gradient(FrozenLogits(model)), gradient(by_planes))
    yield Lever("activations in place", "gradient", gradient(frozen), within(activations_apart, gradient(frozen)))
    in_bf16 = FrozenLogits(model, torch.bfloat16)
    yield Lever("bf16 throughout", "gradient", gradient(in_bf16), gradient(FrozenLogits(model)))
    in_autocast = replace(runtime, precision="bf16").logits(with_norms)
    yield Lever("bf16 copy, not autocast", "gradient", gradient(in_bf16), gradient(in_autocast))
    yield Lever("attack and chain share passes", "2 + 2 moves", moves(shared=True), moves(shared=False))
    if compiled:
        yield Lever("compiled", "gradient", gradient(FrozenLogits(model, frozen.dtype, True)), gradient(frozen))


def training_levers(trainer: Trainer, plain: PlainLoop) -> Iterator[Lever]:
    batch, model, runtime = trainer.next_batch(), trainer.model, trainer.runtime
    images = (batch.x, batch.x_energy, batch.x.flip(3))

    def losses(loss_pass: nn.Module) -> Call:
        def work() -> None:
            model.zero_grad(set_to_none=True)
            torch.stack([logits_BK.square().mean() for logits_BK in loss_pass(*images)]).sum().backward()

        return work

    joint, separate = (LossPass(model, runtime, joint).train() for joint in (True, False))
    yield Lever("one pass for x_adv, x and x_q", "loss pass", losses(joint), losses(separate))
    yield Lever("activations in place", "loss pass", losses(joint), within(activations_apart, losses(joint)))
    if sys.platform == "linux" and runtime.device.type == "cpu":
        yield Lever("freed memory is kept", "loss pass", losses(joint), within(memory_given_back, losses(joint)))
    fused = torch.optim.SGD(model.parameters(), lr=1e-12, momentum=0.9, fused=True)
    yield Lever("fused SGD", "update", fused.step, trainer.optimizer.step)
    generator, count = torch.Generator(), len(batch.x)
    restarted = max(1, round(count * trainer.config.reinit_prob))
    yield Lever(
        "prior draws of those that restart, at once",
        "draw",
        lambda: draw_from_prior(trainer.prior, restarted, generator),
        lambda: plain.prior_starts(count),
    )


def compared(lever: Lever, rounds: int, device: torch.device) -> list[float]:
    """Seconds without over seconds with: first quartile, median, third."""
    calls = {"used": lever.used, "unused": lever.unused}
    ratios = []
    for number in range(rounds + 1):
        order = ("used", "unused") if number % 2 else ("unused", "used")
        seconds = {name: seconds_of(calls[name], device) for name in order}
        ratios.append(seconds["unused"] / seconds["used"])
    return quartiles(ratios[1:])  # the first round warms up


def all_levers(config: TrainConfig, runtime: Runtime, folder: Path, compiled: bool) -> Iterator[Lever]:
    prior = dummy_prior(SHAPE)
    trainer = Rehearsal(config, SHAPE, prior.to(runtime.device), runtime, folder)
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
    config = TrainConfig(**{name: getattr(options, name) for name in names}, lr=1e-12)
    runtime = start_runtime(config)
    network = f"WRN-{config.depth}-{config.width}, batch {config.batch_size}"
    print(f"{network}; {runtime.describe()}; {options.rounds} rounds")
    print("lever\tof\ttimes as fast with it (quartiles)")
    with tempfile.TemporaryDirectory() as folder:
        for lever in all_levers(config, runtime, Path(folder), options.compile):
            low, median, high = compared(lever, options.rounds, runtime.device)
            print(f"{lever.name}\t{lever.of}\t{median:.2f} ({low:.2f}-{high:.2f})", flush=True)


if __name__ == "__main__":
    main()
