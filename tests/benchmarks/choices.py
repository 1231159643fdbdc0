"""Are the defaults of `auto` right on a CPU? A pass in another precision, in another memory format, and compiled: its
time as a ratio to that in fp32, channels_last and without compilation. Below 1, the other is faster.

The networks and passes are those of `passes`. Each takes turns with the others. Compilation takes about a minute per
row; its seconds are in the last column.

    python -m tests.benchmarks.choices [--rounds 9] [--only 'WRN-10-2 chain']
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import time

import torch
from torch import Tensor, nn

from rjem_cli.engine.cpu_speed import cpu_name, has_bf16_units
from rjem_cli.engine.gradients import value_and_grad
from rjem_cli.engine.models.energy import energy
from rjem_cli.engine.models.frozen import FrozenLogits
from rjem_cli.engine.runtime import keep_freed_memory
from tests.benchmarks.passes import (
    DTYPES,
    NORMS,
    PASSES,
    SIZES,
    Call,
    Case,
    build_loss_pass,
    build_network,
    time_second,
)
from tests.benchmarks.speed import quartiles

FORMATS = {"": torch.channels_last, "contiguous": torch.contiguous_format}
BASELINE = ("fp32", "")


def build_pass(model: nn.Module, x: Tensor, labels: Tensor, kind: str, dtype: torch.dtype, variant: str) -> Call:
    model = copy.deepcopy(model).to(memory_format=FORMATS.get(variant, torch.channels_last))
    if kind == "chain":
        frozen = FrozenLogits(model, dtype, compiled=variant == "compiled")
        frozen.network.to(memory_format=FORMATS.get(variant, torch.channels_last))
        return lambda: value_and_grad(frozen, energy, x)
    network = torch.compile(model.train(), dynamic=False) if variant == "compiled" else model.train()
    return build_loss_pass(network, x, labels, dtype)


def measure(size: str, kind: str, norm: str, precisions: list[str], rounds: int) -> list[str]:
    """The cells of a row. The first round warms up."""
    torch._dynamo.reset()
    model, x, labels = build_network(Case(size, kind, norm, "fp32"))
    calls, compile_seconds = {}, []
    for precision, variant in itertools.product(precisions, ("", "contiguous", "compiled")):
        call = build_pass(model, x, labels, kind, DTYPES[precision], variant)
        started = time.perf_counter()
        call()
        compile_seconds += [time.perf_counter() - started] * (variant == "compiled")
        calls[precision, variant] = call
    played = [{name: time_second(call) for name, call in calls.items()} for _ in range(1 + rounds)][1:]
    cells = [f"{1e3 * statistics.median(seconds[BASELINE] for seconds in played):.1f}"]
    for name in list(calls)[1:]:
        ratios = [seconds[name] / seconds[BASELINE] for seconds in played]
        cells.append("{1:.2f} ({0:.2f}-{2:.2f})".format(*quartiles(ratios)))
    return [*cells, " + ".join(f"{seconds:.0f}" for seconds in compile_seconds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="text that a row has to contain, such as 'WRN-10-2 chain'")
    options = parser.parse_args()
    precisions = list(DTYPES)[: 1 + has_bf16_units()]
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}; {options.rounds} rounds")
    names = [f"{precision} {variant}".strip() for precision in precisions for variant in ("", "contiguous", "compiled")]
    print("network", "pass", "norm", "fp32, ms", *names[1:], "compilation, s", sep="\t")
    for values in itertools.product(SIZES, PASSES, NORMS):
        if options.only in " ".join(values):
            print(*values, *measure(*values, precisions, options.rounds), sep="\t", flush=True)


if __name__ == "__main__":
    keep_freed_memory()
    main()
