"""Chains as CUDA graphs: launched kernel by kernel, with rjem's graph of a network pass, and as one graph of a whole
step. Host milliseconds are those until a call returns; they bound small networks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rjem_cli.engine.gradients import value_and_grad
from rjem_cli.engine.models.energy import energy
from rjem_cli.engine.models.frozen import FrozenLogits
from rjem_cli.engine.models.wide_resnet import build_model, place
from rjem_cli.engine.runtime import Runtime, start_runtime
from rjem_cli.engine.sampling.sgld import sgld, sgld_step
from tests.benchmarks.gpu.parts import Bench, Row
from tests.benchmarks.gpu.sizes import Network
from tests.benchmarks.gpu.timing import host_seconds, interleave, medians, ratios
from tests.benchmarks.speed import SHAPE

STEP_SIZE, GRAD_CLIP = 1.0, 1.0
WARMUP_STEPS = 3


class GraphedStep(NamedTuple):
    """One SGLD step on `x` in place."""

    graph: torch.cuda.CUDAGraph
    x: Tensor


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
    failure = {} if same["pass as graph, same bits"] else {"error": "rjem's graph gives other bits"}
    steps = {name: 1000 * seconds / sizes.chain_steps for name, seconds in medians(times).items()}
    return {
        **{f"{name}, ms/step": value for name, value in steps.items()},
        **{f"{name}, host ms/step": value for name, value in host.items()},
        "pass as graph, times as fast": ratios(times, "eager", "pass as graph"),
        "step as graph, times as fast": ratios(times, "eager", "step as graph"),
        **same,
        **failure,
    }


def build_chains(model: torch.nn.Module, runtime: Runtime, x: Tensor, steps: int) -> dict[str, partial[Tensor]]:
    eager = FrozenLogits(model, runtime.dtype, kernels=runtime.kernels)
    graphed = FrozenLogits(model, runtime.dtype, kernels=runtime.kernels, graphs=True)
    options = {"steps": steps, "step_size": STEP_SIZE, "grad_clip": GRAD_CLIP}
    return {
        "eager": partial(sgld, eager, x, **options),
        "pass as graph": partial(sgld, graphed, x, **options),
        "step as graph": partial(replay, capture_step(eager, x), x, steps),
    }


def capture_step(frozen: FrozenLogits, x: Tensor) -> GraphedStep:
    """The warm-up is on a stream of its own, as torch.cuda.graph asks for."""
    static_x = x.clone()

    def step() -> None:
        gradient = value_and_grad(frozen, energy, static_x).gradient
        static_x.copy_(sgld_step(static_x, gradient, STEP_SIZE, GRAD_CLIP))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP_STEPS):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return GraphedStep(graph, static_x)


def replay(graphed: GraphedStep, x: Tensor, steps: int) -> Tensor:
    graphed.x.copy_(x)
    for _ in range(steps):
        graphed.graph.replay()
    return graphed.x.clone()


def compare(chains: dict[str, partial[Tensor]]) -> Row:
    """Whether the last states have the bits of the eager chain, after rjem has recorded its graph."""
    states = {name: (call(), call())[1] for name, call in chains.items()}
    return {
        f"{name}, same bits": bool(torch.equal(states["eager"], x)) for name, x in states.items() if name != "eager"
    }
