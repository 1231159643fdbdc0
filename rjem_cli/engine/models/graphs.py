"""Steps of chains and attacks, replayed as CUDA graphs.

The kernels of a small network finish faster than the host launches them. A CUDA graph records a step once, with its
pass forward and backward, and replays it with one launch. Results have the same bits.
"""

from collections import Counter
from collections.abc import Callable, Hashable
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rjem_cli.errors import is_out_of_memory

# So often a step runs before it is recorded, because a recording takes longer than a few runs. Attacks run at most 5
# steps with one batch size before they drop images; such sizes are not worth a graph unless they come again.
EAGER_RUNS = 8
MAX_GRAPHS = 16  # each takes a few MB on the host; on the GPU all share the memory of the largest

Tensors = tuple[Tensor, ...]


class StepGraphs:
    """Runs functions of tensors on a CUDA GPU, and replays those that are run often.

    A function must compute new tensors from its arguments, whose values may change, and from what stays at the same
    address, such as the weights of a network. It must not wait for the device or draw random numbers.
    """

    def __init__(self) -> None:
        self.enabled = True
        self.runs: Counter[Hashable] = Counter()
        self.graphs: dict[Hashable, RecordedStep] = {}  # the most recently used one is the last
        self.stream: Any = None  # on which all graphs are recorded, so that they can share memory

    def run(self, step: Callable[..., Tensors], network: Any, *tensors: Tensor | None) -> Tensors:
        """step(network, *tensors). Two steps are the same if they are partials of one function with equal arguments,
        and if their tensors have the same shapes and dtypes. A step with a closure is never replayed: what the closure
        holds may change."""
        if not self.enabled or not is_repeatable(step):
            return step(network, *tensors)
        key = step_key(step), *(None if x is None else (x.shape, x.dtype) for x in tensors)
        self.runs[key] += 1
        if recorded := self.find(key, partial(step, network), tensors):
            return recorded.replay(tensors)
        try:
            return step(network, *tensors)
        except RuntimeError as error:
            if not (self.graphs and is_out_of_memory(error)):
                raise
        self.disable()  # outside the handler, because the error holds tensors
        return step(network, *tensors)

    def find(
        self, key: Hashable, step: Callable[..., Tensors], tensors: tuple[Tensor | None, ...]
    ) -> "RecordedStep | None":
        """The graph of a step, recorded now if it is due. None if there is none, if memory is too small for one, or if
        the step cannot be recorded."""
        recorded = self.graphs.pop(key, None)
        if recorded is None and self.runs[key] > EAGER_RUNS:
            try:
                recorded = self.record(step, tensors)
            except RuntimeError as error:
                if not (is_out_of_memory(error) or "captur" in str(error)):  # "capture" or "capturing"
                    raise
                self.disable()
                return None
            if len(self.graphs) == MAX_GRAPHS:
                del self.graphs[next(iter(self.graphs))]
        if recorded is not None:
            self.graphs[key] = recorded
        return recorded

    def record(self, step: Callable[..., Tensors], tensors: tuple[Tensor | None, ...]) -> "RecordedStep":
        """Raises RuntimeError if memory is too small, or for a step that waits for the device."""
        device = next(x.device for x in tensors if x is not None)
        with torch.cuda.device(device), torch.no_grad():
            self.stream, graph = self.stream or torch.cuda.Stream(device), torch.cuda.CUDAGraph()
            inputs = [None if x is None else x.clone() for x in tensors]
            # a step's results are copied before the next step, so all graphs can share their memory
            pool = next(iter(self.graphs.values())).graph.pool() if self.graphs else None
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):  # PyTorch asks for a run on another stream before a recording
                step(*inputs)
                with torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"):
                    outputs = step(*inputs)
            torch.cuda.current_stream().wait_stream(self.stream)
        return RecordedStep(graph, inputs, outputs)

    def disable(self) -> None:
        """Free the memory of all graphs, and record no more."""
        self.enabled = False
        self.graphs.clear()
        torch.cuda.empty_cache()


class RecordedStep(NamedTuple):
    """A graph, and the tensors that it reads and overwrites."""

    graph: Any
    inputs: list[Tensor | None]
    outputs: Tensors

    @torch.no_grad()
    def replay(self, tensors: tuple[Tensor | None, ...]) -> Tensors:
        for recorded, given in zip(self.inputs, tensors):
            if recorded is not None and given is not None:
                recorded.copy_(given)
        self.graph.replay()
        return tuple(output.clone() for output in self.outputs)


def is_repeatable(value: Any) -> bool:
    """Whether equal steps, or equal arguments of steps, always compute the same. Closures may not, and a tensor is
    equal only to itself: it would give each chain a graph of its own."""
    if isinstance(value, partial):
        return all(map(is_repeatable, (value.func, *value.args, *value.keywords.values())))
    if callable(value):
        return isinstance(value, FunctionType) and value.__closure__ is None
    return isinstance(value, Hashable) and not isinstance(value, Tensor)


def step_key(step: Any) -> Hashable:
    """Equal for partials of the same function with equal arguments, and for the same function."""
    if not isinstance(step, partial):
        return step  # type: ignore[no-any-return]
    keywords = ((name, step_key(value)) for name, value in sorted(step.keywords.items()))
    return step_key(step.func), *map(step_key, step.args), *keywords
