"""Chains launched kernel by kernel, and with a CUDA graph per step. Host milliseconds are those until a call returns;
they bound small networks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from rjem_cli.engine.models.frozen import FrozenLogits
from rjem_cli.engine.networks.build import build_model, place
from rjem_cli.engine.runtime import Runtime, start_runtime
from rjem_cli.engine.sampling.sgld import sgld
from tests.benchmarks.gpu.parts import Bench, Row
from tests.benchmarks.gpu.sizes import Network
from tests.benchmarks.gpu.timing import host_seconds, interleave, medians, ratios
from tests.benchmarks.speed import SHAPE

STEP_SIZE, GRAD_CLIP = 1.0, 1.0


def run(bench: Bench) -> None:
    bench.need_cuda("CUDA graphs need a CUDA device", pretend_too=False)
    for network in bench.sizes.networks[::-1]:
        for precision in bench.precisions:
            labels = {"network": str(network), "precision": precision, "batch": bench.sizes.graph_batch}
            bench.measure(labels, partial(measure, bench, network, precision))


def measure(bench: Bench, network: Network, precision: str) -> Row:
    """The bits are compared with reproducible kernels, the times are of the fastest."""
    sizes = bench.sizes
    config = network.config(sizes.graph_batch, precision, str(bench.device))
    torch.manual_seed(0)
    model = place(build_model(config, channels=SHAPE.image_shape[0], num_classes=SHAPE.classes), bench.device)
    x = torch.rand(sizes.graph_batch, *SHAPE.image_shape).to(bench.device) * 2 - 1
    runtime = start_runtime(config)
    chains = build_chains(model, runtime, x, sizes.chain_steps)
    times = interleave(chains, bench.device, bench.seconds_left() / 12, sizes.rounds)
    host = {name: 1000 * host_seconds(call, bench.device) / sizes.chain_steps for name, call in chains.items()}
    del chains
    same = compare(build_chains(model, replace(runtime, reproducible=True), x, sizes.chain_steps))
    failure = {} if same else {"error": "the graph gives other bits"}
    steps = {name: 1000 * seconds / sizes.chain_steps for name, seconds in medians(times).items()}
    return {
        **{f"{name}, ms/step": value for name, value in steps.items()},
        **{f"{name}, host ms/step": value for name, value in host.items()},
        "graph, times as fast": ratios(times, "eager", "graph"),
        "same bits": same,
        **failure,
    }


def build_chains(model: torch.nn.Module, runtime: Runtime, x: Tensor, steps: int) -> dict[str, partial[Tensor]]:
    eager = FrozenLogits(model, runtime.dtype, kernels=runtime.kernels)
    graphed = FrozenLogits(model, runtime.dtype, kernels=runtime.kernels, graphs=True)
    options = {"steps": steps, "step_size": STEP_SIZE, "grad_clip": GRAD_CLIP}
    return {
        "eager": partial(sgld, eager, x, **options),
        "graph": partial(sgld, graphed, x, **options),
    }


def compare(chains: dict[str, partial[Tensor]]) -> bool:
    """Whether the last states have the same bits, after the graph was recorded."""
    eager, graphed = ((call(), call())[1] for call in chains.values())
    return torch.equal(eager, graphed)
