"""What share of a network pass is not convolution, and is a pass faster than at an older commit?

A chain pass is the value and the gradient of the energy through a frozen network. A loss pass is the forward pass in
training mode, with autocast in bf16, and the backward pass. Each round times the pass and then its convolutions alone,
forward and backward, in the same precision and in channels_last. `share of the peak` is their ratio: 1 would be a pass
of nothing but convolutions. With `--before`, a process with the code of another checkout takes turns with this one.

    python -m tests.benchmarks.passes
    git archive COMMIT | tar -x -C ../before && python -m tests.benchmarks.passes --before ../before
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rjem_cli
from rjem_cli.config.training import ModelOptions
from rjem_cli.engine.gradients import value_and_grad
from rjem_cli.engine.models.energy import energy
from rjem_cli.engine.models.frozen import FrozenLogits
from rjem_cli.engine.runtime import keep_freed_memory

try:
    from rjem_cli.engine.networks import build as networks
except ImportError:  # an older checkout, of --before
    from rjem_cli.engine.models import wide_resnet as networks

SIZES = {"WRN-10-2": (10, 2, 16, 64), "WRN-16-2": (16, 2, 32, 32)}  # depth, width, side, batch
PASSES, NORMS = ("chain", "loss"), ("batch", "group", "none")
PLAIN = ((1, 1), False, (0, 0), 1)  # dilation, transposed, output padding and groups of each convolution
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
HEADER = "network\tpass\tnorm\tprecision\tms\tshare of the peak (quartiles)\tpeak, GFLOP/s"

Call = Callable[[], object]


class Case(NamedTuple):
    size: str
    kind: str
    norm: str
    precision: str


def build_network(case: Case) -> tuple[nn.Module, Tensor, Tensor]:
    """(network, images, labels). Without `place`, the memory format is that of `build_model`."""
    depth, width, side, batch = SIZES[case.size]
    torch.manual_seed(0)
    model = networks.build_model(ModelOptions(depth=depth, width=width, norm_layer=case.norm), 3, 10)
    if hasattr(networks, "place"):
        model = networks.place(model, torch.device("cpu"))
    return model, torch.rand(batch, 3, side, side) * 2 - 1, torch.arange(batch) % 10


def build_pass(case: Case) -> Call:
    """A function that takes one pass."""
    model, x, labels = build_network(case)
    dtype = DTYPES[case.precision]
    if case.kind == "chain":
        frozen = FrozenLogits(model, dtype)
        return lambda: value_and_grad(frozen, energy, x)
    return build_loss_pass(model.train(), x, labels, dtype)


def build_loss_pass(model: Any, x: Tensor, labels: Tensor, dtype: torch.dtype) -> Call:
    """`model` may be compiled."""

    def loss_pass() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits_BK = model(x)
        F.cross_entropy(logits_BK.float(), labels).backward()

    return loss_pass


def convolution_order(model: nn.Module, x: Tensor) -> list[tuple[nn.Conv2d, torch.Size]]:
    """The convolutions in the order of their calls, each with the shape of its input."""
    found: list[tuple[nn.Conv2d, torch.Size]] = []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda layer, inputs, _: found.append((layer, inputs[0].shape)))
    with torch.no_grad():
        model(x)
    return found


def build_convolutions(case: Case) -> Call:
    """The convolutions of one pass alone. As in a pass, each takes what another has just written, all inputs are kept
    until the backward pass, and only a chain pass has a gradient of the images."""
    dtype, trains = DTYPES[case.precision], case.kind == "loss"
    model, images, _ = build_network(case)
    images = images.to(dtype, memory_format=torch.channels_last)
    layers = []
    for layer, shape in convolution_order(model, images.float()):
        mask = [not (trains and layer is model.stem), trains, trains]
        settings = (layer.stride, layer.padding, *PLAIN)
        layers.append((shape, layer.weight.detach().to(dtype), layer.bias.detach().to(dtype), settings, mask))

    @torch.no_grad()
    def convolve() -> None:
        newest, kept = {images.shape: images}, []
        for shape, weight, bias, settings, _ in layers:
            output = torch.ops.aten.convolution(newest[shape], weight, bias, *settings)
            kept.append((newest[shape], output))
            newest[output.shape] = output
        newest = {output.shape: output}  # of gradients
        for (_, weight, bias, settings, mask), (x, output) in zip(reversed(layers), reversed(kept)):
            arguments = (newest[output.shape], x, weight, bias.shape, *settings, mask)
            newest[x.shape] = torch.ops.aten.convolution_backward(*arguments)[0]

    return convolve


def time_second(call: Call) -> float:
    """Seconds of the second of two calls: the first finds the caches and threads as another process left them."""
    call()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


# --- the process with the code of another checkout: it reads a case and answers with seconds, in lines of JSON ---


def serve() -> None:
    print(json.dumps(str(Path(rjem_cli.__file__).resolve().parent)), flush=True)
    built: dict[Case, Call] = {}
    for line in sys.stdin:
        case = Case(*json.loads(line))
        if case not in built:
            built = {case: build_pass(case)}
        print(json.dumps(time_second(built[case])), flush=True)


def start_worker(path: Path) -> Callable[[Case], float]:
    """A function that returns the seconds of a pass of the checkout `path`."""
    command = [sys.executable, str(Path(__file__).resolve()), "--worker"]
    environment, pipe = {**os.environ, "PYTHONPATH": str(path.resolve())}, subprocess.PIPE
    process: Any = subprocess.Popen(command, cwd=path, env=environment, stdin=pipe, stdout=pipe, text=True)

    def read() -> Any:
        return json.loads(process.stdout.readline() or sys.exit("the worker ended"))

    def time_before(case: Case) -> float:
        print(json.dumps(case), file=process.stdin, flush=True)
        return float(read())

    package = read()
    if package != str(path.resolve() / "rjem_cli"):
        sys.exit(f"--before {path}: the worker has imported {package}")
    return time_before


def measure(case: Case, rounds: int, time_before: Callable[[Case], float] | None) -> list[str]:
    """The cells of a row. The first round warms up."""
    from tests.benchmarks.speed import count_flops, quartiles  # not in the worker, where it could be an older one

    own, alone = build_pass(case), build_convolutions(case)
    turns: dict[str, Callable[[], float]] = {"own": lambda: time_second(own), "alone": lambda: time_second(alone)}
    if time_before is not None:
        turns["before"] = lambda: time_before(case)
    played = [{name: turn() for name, turn in turns.items()} for _ in range(1 + rounds)][1:]

    def ratio(above: str, below: str) -> str:
        return "{1:.2f} ({0:.2f}-{2:.2f})".format(*quartiles([seconds[above] / seconds[below] for seconds in played]))

    middle = {name: statistics.median(seconds[name] for seconds in played) for name in turns}
    peak = f"{count_flops(alone) / middle['alone'] / 1e9:.0f}"
    cells = [f"{1e3 * middle['own']:.1f}", ratio("alone", "own"), peak]
    return cells + ([f"{1e3 * middle['before']:.1f}", ratio("own", "before")] if time_before else [])


def main() -> None:
    from rjem_cli.engine.cpu_speed import cpu_name, has_bf16_units

    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--before", type=Path, help="a checkout of an older commit")
    parser.add_argument("--only", default="", help="text that a case has to contain, such as 'WRN-10-2 chain'")
    options = parser.parse_args()
    before = start_worker(options.before) if options.before else None
    precisions = list(DTYPES)[: 1 + has_bf16_units()]
    where = f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(where, f"{options.rounds} rounds", *(["bf16 left out: emulated"] if len(precisions) < 2 else []), sep="; ")
    print(HEADER + ("\tms before\ttime, now / before (quartiles)" if before else ""))
    for values in itertools.product(SIZES, PASSES, NORMS, precisions):
        if options.only in " ".join(values):
            print("\t".join([*values, *measure(Case(*values), options.rounds, before)]), flush=True)


if __name__ == "__main__":
    keep_freed_memory()
    serve() if sys.argv[1:] == ["--worker"] else main()
