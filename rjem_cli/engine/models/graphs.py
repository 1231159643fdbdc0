"""Steps of chains and attacks, replayed as CUDA graphs.

The kernels of a small network finish faster than the host launches them. A CUDA graph records a step once, with its
pass forward and backward, and replays it with one launch. Results have the same bits.
"""

from collections import Counter
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rjem_cli.errors import is_out_of_memory

EAGER_RUNS = 3  # before a step is recorded; the last batch of a data set is often smaller and not worth it
MAX_GRAPHS = 16  # the host's memory for one is a few MB; the GPU's memory is that of the largest step

Tensors = tuple[Tensor, ...]


class StepGraphs:
    """Runs functions of tensors on a CUDA GPU, and replays those that are run often.

    A function must compute new tensors from its arguments, whose values may change, and from what stays at the same
    address, such as the weights of a network. It must not wait for the device or draw random numbers.
    """

    def __init__(self) -> None:
        self.runs: Counter[Hashable] = Counter()
        self.graphs: dict[Hashable, RecordedStep] = {}

    def run(self, step: Callable[..., Tensors], network: Any, *tensors: Tensor | None) -> Tensors:
        """step(network, *tensors). It is the same step as an earlier one if it is a partial of the same function with
        equal arguments, and if the tensors have the same shapes."""
        key = step_key(step), *(None if x is None else (x.shape, x.dtype) for x in tensors)
        self.runs[key] += 1
        try:
            if key not in self.graphs and self.runs[key] > EAGER_RUNS and len(self.graphs) < MAX_GRAPHS:
                self.record(key, partial(step, network), tensors)
            if recorded := self.graphs.get(key):
                return recorded.replay(tensors)
            return step(network, *tensors)
        except RuntimeError as error:
            if is_out_of_memory(error):  # smaller batches follow
                self.graphs.clear()
            raise

    def record(self, key: Hashable, step: Callable[..., Tensors], tensors: tuple[Tensor | None, ...]) -> None:
        """Nothing if memory is too small for a graph, or if the step cannot be recorded."""
        # a step's results are copied before the next step, so all graphs share their memory
        pool = next(iter(self.graphs.values())).graph.pool() if self.graphs else None
        try:
            self.graphs[key] = record(step, tensors, pool)
        except RuntimeError as error:
            self.runs[key] = -(2**62)  # never again
            if not (is_out_of_memory(error) or "captur" in str(error)):
                raise


class RecordedStep(NamedTuple):
    """A graph, and the tensors that it reads and overwrites."""

    graph: Any
    inputs: list[Tensor | None]
    outputs: Tensors

    def replay(self, tensors: tuple[Tensor | None, ...]) -> Tensors:
        for recorded, given in zip(self.inputs, tensors):
            if recorded is not None and given is not None:
                recorded.copy_(given)
        self.graph.replay()
        return tuple(output.clone() for output in self.outputs)


def step_key(step: Any) -> Hashable:
    """Equal for partials of the same function with equal arguments, and for the same function."""
    if not isinstance(step, partial):
        return step  # type: ignore[no-any-return]
    keywords = ((name, step_key(value)) for name, value in sorted(step.keywords.items()))
    return step_key(step.func), *map(step_key, step.args), *keywords


def record(step: Callable[..., Tensors], tensors: tuple[Tensor | None, ...], pool: Any) -> RecordedStep:
    """Raises RuntimeError if memory is too small, or for a step that waits for the device."""
    inputs = [None if x is None else x.clone() for x in tensors]
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # PyTorch asks for a run on another stream before a recording
        step(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        outputs = step(*inputs)
    return RecordedStep(graph, inputs, outputs)
