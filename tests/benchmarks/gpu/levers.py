"""What does each optimization bring by itself? Calls with and without it take turns; ratios are of the same round.

cuDNN keeps the algorithm that it chose for a shape, whether it timed it or not. So `cudnn.benchmark` cannot be switched
alone within one process: the row measures rjem's switch, which also changes `cudnn.deterministic`, and that has
algorithms of its own.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.gradients import LogitsFn, value_and_grad
from rjem_cli.engine.kernels import Kernels
from rjem_cli.engine.models.energy import energy
from rjem_cli.engine.models.frozen import FrozenLogits
from rjem_cli.engine.networks.build import build_model, place
from rjem_cli.engine.networks.wide_resnet import GroupNorm, WideResNet
from rjem_cli.engine.runtime import Runtime, check_compiler, start_runtime
from rjem_cli.engine.training.trainer import TrainingForward
from rjem_cli.errors import AbsentError
from tests.benchmarks.gpu.parts import Bench, Row
from tests.benchmarks.gpu.sizes import Network
from tests.benchmarks.gpu.timing import interleave, medians, ratios
from tests.benchmarks.levers import Lever
from tests.benchmarks.speed import SHAPE, Call

COMPILE_SECONDS = 45  # to have left before a network is compiled for a GPU
NORMS = ("batch", "group", "none")
NORM_NAMES = {nn.BatchNorm2d: "BatchNorm", GroupNorm: "GroupNorm", nn.Identity: "no norm"}


@dataclass
class Bed:
    """What levers are tried on. `images`: (B, C, H, W) on the device, of which calls take the first `count`."""

    model: WideResNet
    runtime: Runtime
    images: Tensor
    count: int

    @property
    def x(self) -> Tensor:
        return self.images[: self.count]

    def frozen(self, dtype: torch.dtype | None = None, kernels: Kernels | None = None) -> FrozenLogits:
        return FrozenLogits(self.model, dtype or self.runtime.dtype, kernels=kernels or self.runtime.kernels)

    def gradient(self, logits_fn: LogitsFn) -> Call:
        return lambda: value_and_grad(logits_fn, energy, self.x)

    def loss_pass(self, model: nn.Module | None = None, runtime: Runtime | None = None) -> Call:
        """Of x_adv, x and x_q at once, as in a training step."""
        model, runtime = model or self.model, runtime or self.runtime
        forward = TrainingForward(model, runtime.logits(model), joint=True).train()

        def compute_gradients() -> None:
            model.zero_grad(set_to_none=True)
            with runtime.kernels.active():
                logits = forward(self.x, self.x, self.x)
                torch.stack([logits_BK.square().mean() for logits_BK in logits]).sum().backward()

        return compute_gradients


def run(bench: Bench) -> None:
    bench.note(
        "cuDNN's timing of algorithms and its reproducible algorithms are one switch in rjem, so they are one row"
    )
    for network in dict.fromkeys([middle(bench), bench.sizes.networks[0]]):
        for precision in bench.precisions:
            measure_levers(bench, network, precision, network_levers)
    for norm in NORMS:
        for precision in bench.precisions:
            measure_levers(bench, middle(bench)._replace(norm_layer=norm), precision, layout_levers)
    for precision in bench.precisions[::-1]:
        measure_levers(bench, middle(bench), precision, compilation_levers)


def middle(bench: Bench) -> Network:
    """The network that is neither the smallest nor the largest, with BatchNorm."""
    networks = bench.sizes.networks
    return networks[min(1, len(networks) - 1)]._replace(norm_layer="batch")


def build_bed(bench: Bench, network: Network, precision: str) -> Bed:
    count = bench.sizes.lever_batch
    config = network.config(count, precision, str(bench.device))
    torch.manual_seed(0)
    model = place(build_model(config, channels=SHAPE.image_shape[0], num_classes=SHAPE.classes), bench.device)
    return Bed(model, start_runtime(config), (torch.rand(count, *SHAPE.image_shape) * 2 - 1).to(bench.device), count)


def measure_levers(
    bench: Bench, network: Network, precision: str, find_levers: Callable[[Bench, Bed], Iterator[Lever]]
) -> None:
    bed = build_bed(bench, network, precision)
    for lever in find_levers(bench, bed):
        labels = {"lever": lever.name, "of": lever.of, "network": str(network), "precision": precision}
        bench.measure(labels, partial(measure_lever, bench, bed, lever))


def measure_lever(bench: Bench, bed: Bed, lever: Lever) -> Row:
    """With the largest batch that fits."""

    def measure(count: int) -> Row:
        bed.count = count
        started = time.monotonic()
        lever.used()
        first_call = time.monotonic() - started
        times = interleave({"on": lever.used, "off": lever.unused}, bench.device, bench.seconds_left() / 8, rounds)
        return {"batch": count, **lever_row(times), "first call, s": first_call}

    rounds = bench.sizes.rounds
    return BatchSizer(bed.count).run_largest(measure)


def lever_row(times: dict[str, list[float]]) -> Row:
    milliseconds = {name: 1000 * seconds for name, seconds in medians(times).items()}
    return {"times as fast": ratios(times, "off", "on"), "ms on": milliseconds["on"], "ms off": milliseconds["off"]}


# --- levers ---


def network_levers(bench: Bench, bed: Bed) -> Iterator[Lever]:
    precision, frozen = bed.runtime.precision, bed.frozen()
    yield Lever("BatchNorm folded", "gradient", bed.gradient(frozen), bed.gradient(unfolded(bed)))
    if not bench.on_cuda:
        return
    reproducible = replace(bed.runtime.kernels, reproducible=True)
    slower = bed.frozen(kernels=reproducible)
    yield Lever("fastest cuDNN algorithms, not reproducible", "gradient", bed.gradient(frozen), bed.gradient(slower))
    slow_loss = bed.loss_pass(runtime=replace(bed.runtime, reproducible=True))
    yield Lever("fastest cuDNN algorithms, not reproducible", "loss pass", bed.loss_pass(), slow_loss)
    other = "fp32" if precision == "tf32" else "tf32"
    others = replace(bed.runtime, precision=other)
    plain = bed.frozen(others.dtype, others.kernels)
    yield Lever(f"{precision}, not {other}", "gradient", bed.gradient(frozen), bed.gradient(plain))
    yield Lever(f"{precision}, not {other}", "loss pass", bed.loss_pass(), bed.loss_pass(runtime=others))


def unfolded(bed: Bed) -> FrozenLogits:
    """With BatchNorm in eval mode."""
    frozen = bed.frozen()
    frozen.network = copy.deepcopy(bed.model).eval().requires_grad_(False).to(bed.runtime.dtype)
    frozen.compute = frozen.network
    return frozen


def layout_levers(bench: Bench, bed: Bed) -> Iterator[Lever]:
    name = NORM_NAMES[type(bed.model.norm)]
    last, contiguous = bed.frozen(), bed.frozen()
    last.network.to(memory_format=torch.channels_last)
    contiguous.network.to(memory_format=torch.contiguous_format)
    yield Lever(f"channels_last, {name}", "gradient", bed.gradient(last), bed.gradient(contiguous))
    models = [
        copy.deepcopy(bed.model).to(memory_format=form) for form in (torch.channels_last, torch.contiguous_format)
    ]
    yield Lever(f"channels_last, {name}", "loss pass", *map(bed.loss_pass, models))


def compilation_levers(bench: Bench, bed: Bed) -> Iterator[Lever]:
    """Their first call compiles."""
    if not bench.sizes.compiles:
        bench.leave_out("torch.compile", "not at these sizes")
        return
    try:
        check_compiler(bench.device)
    except AbsentError as error:
        bench.leave_out("torch.compile", str(error))
        return
    compiling, name = replace(bed.runtime, compiles=True, graphs=False), "torch.compile, dynamic=False"
    levers = (
        Lever(name, "gradient", bed.gradient(compiling.frozen(bed.model)), bed.gradient(bed.frozen())),
        Lever(name, "loss pass", bed.loss_pass(copy.deepcopy(bed.model), compiling), bed.loss_pass()),
    )
    for lever in levers:
        if bench.on_cuda and bench.seconds_left() < COMPILE_SECONDS:
            bench.leave_out(f"torch.compile, {lever.of}, {bed.runtime.precision}", "no time left")
        else:
            yield lever
