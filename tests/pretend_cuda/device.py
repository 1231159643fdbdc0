"""The device: a context that patches PyTorch and restores it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tests.pretend_cuda.placement import device_index, is_pinned, pin, place
from tests.pretend_cuda.record import DeviceCopy, HostSync, LayoutCopy, Product, Record, find_caller

if TYPE_CHECKING:
    from tests.pretend_cuda.cuda_graphs import PretendGraph

STAGING_BYTES = 64 * 1024  # a copy from pageable memory returns at once up to this size


class PretendCuda(contextlib.AbstractContextManager["PretendCuda"]):
    """`device_count` GPUs with `memory` bytes each; `current` is the one of this process. Callers are looked up in
    `package`. `staging_bytes`: how much of a pageable host tensor is copied without waiting."""

    def __init__(
        self,
        package: str = "rjem_cli",
        device_count: int = 1,
        memory: int = 80 * 2**30,
        staging_bytes: int = STAGING_BYTES,
    ):
        self.package, self.device_count, self.memory, self.staging_bytes = package, device_count, memory, staging_bytes
        self.current = 0
        self.record = Record()
        self.sync_count = 0
        self.failing_operation: str | None = None
        self.graph: PretendGraph | None = None  # that records operations now
        self.state = threading.local()
        self.patches = contextlib.ExitStack()

    def __enter__(self) -> PretendCuda:
        from tests.pretend_cuda.cuda_patches import cuda_patches
        from tests.pretend_cuda.rules import FunctionRules, OperationRules
        from tests.pretend_cuda.tensor_patches import tensor_patches

        with self.patches:  # restores what is patched already if a patch fails
            for patch in (*tensor_patches(self), *cuda_patches(self), FunctionRules(self), OperationRules(self)):
                self.patches.enter_context(patch)
            self.patches = self.patches.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.patches.close()

    # --- record ---

    @contextlib.contextmanager
    def recording(self) -> Iterator[Record]:
        """A record of the work inside only, which `record` does not get."""
        before, self.record = self.record, Record()
        try:
            yield self.record
        finally:
            self.record = before

    def caller(self) -> str:
        return find_caller(self.package)

    def record_sync(self, kind: str, size: int = 0) -> None:
        self.sync_count += 1
        self.record.syncs.append(HostSync(kind, self.caller(), size))

    def record_launches(self, operation: str, count: int = 1) -> None:
        self.record.launches[operation] += count

    def record_product(self, operation: str, arithmetic: str) -> None:
        self.record.products.append(Product(operation, arithmetic, self.caller()))

    def record_layout_copy(self, operation: str, x: Tensor) -> None:
        self.record_launches("layout copy")
        self.record.layout_copies.append(LayoutCopy(operation, x.nbytes, self.caller()))

    def record_copy(
        self, direction: str, source: Tensor, non_blocking: bool, pinned: bool, kind: str = "device to host"
    ) -> None:
        """And the sync that the copy implies; `kind`: of a copy to the host."""
        size = source.nbytes
        self.record.copies.append(DeviceCopy(direction, size, non_blocking, pinned, self.caller()))
        if not size:
            return
        if direction == "d2h":
            if not (non_blocking and pinned):
                self.record_sync(kind, size)
        elif not non_blocking:
            self.record_sync("host to device, blocking", size)
        elif not pinned and size > self.staging_bytes:
            self.record_sync("host to device, pageable", size)

    # --- copies between host and device ---

    def transfer(self, x: Tensor, index: int | None, non_blocking: bool, **options: object) -> Tensor:
        """A copy of `x` on device `index`, or on the host if it is None. `options`: dtype and memory_format. As in
        PyTorch, a copy to the host that does not block goes to pinned memory."""
        source, pinned = device_index(x), non_blocking if index is None else is_pinned(x)
        if source is None or index is None:
            self.record_copy("d2h" if index is None else "h2d", x, non_blocking, pinned)
        else:
            self.record_launches("copy between devices")
        with self.unobserved():
            result = place(torch._C.TensorBase.to(x, copy=True, **options), index)
        if index is None and pinned:
            pin(result)
            self.start_copy_to(result)
        return result

    def start_copy_to(self, x: Tensor) -> None:
        """A host tensor gets its values at the next sync."""
        x.untyped_storage().complete_after = self.sync_count

    def check_complete(self, x: Tensor) -> None:
        """Raises RuntimeError for a host tensor that a copy is still writing."""
        if getattr(x.untyped_storage(), "complete_after", -1) == self.sync_count:
            raise RuntimeError("the host reads a tensor before its copy from the device is complete; synchronize first")

    # --- what the rules apply to ---

    @property
    def observes(self) -> bool:
        return getattr(self.state, "observes", True)

    @contextlib.contextmanager
    def unobserved(self) -> Iterator[None]:
        """Operations inside are not checked, recorded or placed."""
        before, self.state.observes = self.observes, False
        try:
            with torch._C.DisableTorchFunction():
                yield
        finally:
            self.state.observes = before

    @property
    def home(self) -> int | None:
        """The device of tensors that PyTorch's C++ code creates for the function that is running."""
        return getattr(self.state, "home", None)

    @contextlib.contextmanager
    def creating_on(self, index: int | None) -> Iterator[None]:
        before, self.state.home = self.home, index
        try:
            yield
        finally:
            self.state.home = before

    def resolve_index(self, device: torch.device) -> int | None:
        """The index of a CUDA device; None for another. Raises RuntimeError if there is no such device."""
        if device.type != "cuda":
            return None
        if device.index is not None and device.index >= self.device_count:
            raise RuntimeError("CUDA error: invalid device ordinal")
        return self.current if device.index is None else device.index

    # --- failures ---

    def fail_next(self, operation: str) -> None:
        """The next launch of this operation, such as `convolution`, runs out of memory."""
        self.failing_operation = operation

    def check_failure(self, operation: str) -> None:
        if operation == self.failing_operation:
            self.failing_operation = None
            raise torch.OutOfMemoryError("CUDA out of memory. (simulated)")
