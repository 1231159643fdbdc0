"""torch.cuda.CUDAGraph: the operations on the device are recorded while they run. A replay runs them again on the same
tensors and overwrites their results, as a real graph does. Operations on another device run, but are not recorded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.pretend_cuda.kernels import make_contiguous

if TYPE_CHECKING:
    from tests.pretend_cuda.device import PretendCuda
    from tests.pretend_cuda.rules import Operation


class PretendGraph:
    def __init__(self, cuda: PretendCuda, **options: Any):
        self.cuda = cuda
        self.device: int | None = None  # while it records
        self.operations: list[tuple[Operation, Any]] = []  # and its result
        self.products: list[Any] = []

    def pool(self) -> tuple[int, int]:
        return 0, id(self.cuda)

    @contextlib.contextmanager
    def capturing(self, device: int) -> Iterator[None]:
        """Raises RuntimeError for what cannot be recorded."""
        cuda = self.cuda
        cuda.graph, self.device = self, device
        try:
            with cuda.recording() as inside:
                yield
        finally:
            cuda.graph = None
        self.products = inside.products
        if inside.syncs or inside.copies:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    def replay(self) -> None:
        """One launch, whatever is inside."""
        with self.cuda.recording(), self.cuda.unobserved(), torch._C._AutoDispatchBelowAutograd():
            for operation, result in self.operations:
                repeat(self.cuda, operation, result)
        self.cuda.record.products += self.products
        self.cuda.record_launches("graph")


def repeat(cuda: PretendCuda, operation: Operation, result: Any) -> None:
    if operation.func.is_view:
        return
    args = operation.args
    make_contiguous(cuda, operation)
    repeated = operation.run()
    operation.args = args
    for old, new in zip(tree_leaves(result), tree_leaves(repeated)):
        if isinstance(old, Tensor) and old is not new:
            old.copy_(new)


@contextlib.contextmanager
def graph(
    cuda_graph: PretendGraph, pool: Any = None, stream: Any = None, capture_error_mode: str = "global"
) -> Iterator[None]:
    """Records what runs on the device of `stream`."""
    with cuda_graph.capturing(stream.device_index):
        yield
