"""What Python code sees of tensors, and the functions that create or move them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.pretend_cuda.kernels import SYNC_BATCH_NORM, as_one_kernel, group_norm, one_hot
from tests.pretend_cuda.placement import (
    GET_DEVICE,
    PretendGenerator,
    device_index,
    is_cuda,
    is_on_device,
    is_pinned,
    pin,
)
from tests.pretend_cuda.rules import first_index

if TYPE_CHECKING:
    from tests.pretend_cuda.device import PretendCuda

Base = torch._C.TensorBase
TENSOR, AS_TENSOR, PARSE_TO = torch.tensor, torch.as_tensor, torch._C._nn._parse_to
GROUP_TENSORS, RUN_BACKWARD = torch._C._group_tensors_by_device_and_dtype, torch.autograd._engine_run_backward
Patches = Iterator[contextlib.AbstractContextManager[Any]]


def tensor_patches(cuda: PretendCuda) -> Patches:
    for name, value in TensorMethods(cuda).attributes().items():
        yield replaced(torch.Tensor, name, value)
    yield replaced(torch.UntypedStorage, "clone", lambda storage: clone_storage(cuda, storage))
    creation = Creation(cuda)
    yield replaced(torch, "tensor", creation.tensor)
    yield replaced(torch, "as_tensor", creation.as_tensor)
    yield replaced(torch, "Generator", PretendGenerator)
    yield replaced(torch, "autocast", PretendAutocast)
    yield replaced(torch.amp, "autocast", PretendAutocast)
    yield replaced(F, "one_hot", one_hot)
    yield replaced(F, "group_norm", lambda *args, **kwargs: group_norm(cuda, *args, **kwargs))
    yield replaced(torch._C._nn, "_parse_to", parse_to)
    yield replaced(torch._C, "_group_tensors_by_device_and_dtype", group_tensors)
    yield replaced(torch.autograd, "_engine_run_backward", lambda *args, **kwargs: run_backward(cuda, *args, **kwargs))
    for kernel in SYNC_BATCH_NORM:
        yield replaced(torch, kernel.__name__, as_one_kernel(cuda, kernel))


@contextlib.contextmanager
def replaced(target: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute. Restores one that is inherited by deleting the new one."""
    if not isinstance(target, type):
        with mock.patch.object(target, name, value, create=True):
            yield
        return
    inherited = name not in target.__dict__
    before = None if inherited else target.__dict__[name]
    setattr(target, name, value)
    try:
        yield
    finally:
        if inherited:
            delattr(target, name)
        else:
            setattr(target, name, before)


class Transfer(torch.autograd.Function):
    """A copy to another device; its gradient returns to the device of its input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, cuda: PretendCuda, index: int | None, non_blocking: bool, options: dict[str, Any]
    ) -> Tensor:
        ctx.cuda, ctx.index, ctx.dtype = cuda, device_index(x), x.dtype
        return cuda.transfer(x, index, non_blocking, **options)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.cuda.transfer(gradient, ctx.index, False, dtype=ctx.dtype), None, None, None, None


class TensorMethods:
    """Methods and properties of torch.Tensor."""

    def __init__(self, cuda: PretendCuda):
        self.cuda = cuda

    def attributes(self) -> dict[str, Any]:
        properties = {
            "device": lambda x: torch.device("cuda", device_index(x)) if is_on_device(x) else GET_DEVICE(x),
            "is_cuda": is_on_device,
            "is_cpu": lambda x: not is_on_device(x) and GET_DEVICE(x).type == "cpu",
        }
        methods = (self.to, self.cpu, self.numpy, self.tolist, self.pin_memory, self.new_tensor)
        return {
            **{name: property(value) for name, value in properties.items()},
            **{method.__name__: as_method(method) for method in methods},
            "cuda": as_method(self.to_cuda),
            "__array__": as_method(self.array),
            "get_device": as_method(lambda x: device_index(x) if is_on_device(x) else -1),
            "is_pinned": as_method(lambda x, device=None: is_pinned(x)),
        }

    def to(self, x: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        device, dtype, non_blocking, memory_format = parse_to(*args, **kwargs)
        options = {} if memory_format is None else {"memory_format": memory_format}
        kinds = {GET_DEVICE(x).type, "cpu" if device is None else device.type}
        if kinds == {"meta", "cuda"}:
            raise NotImplementedError("Cannot copy out of meta tensor; no data!")
        if kinds - {"cpu", "cuda"}:
            return Base.to(x, *args, copy=copy, **kwargs)
        index = device_index(x) if device is None else self.cuda.resolve_index(device)
        dtype = x.dtype if dtype is None else dtype
        if index != device_index(x):
            return Transfer.apply(x, self.cuda, index, non_blocking, {"dtype": dtype, **options})  # type: ignore[no-any-return]
        with torch._C.DisableTorchFunction():
            return Base.to(x, dtype, non_blocking=non_blocking, copy=copy, **options)

    def cpu(self, x: Tensor, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
        return self.to(x, "cpu", memory_format=memory_format)

    def to_cuda(
        self,
        x: Tensor,
        device: Any = "cuda",
        non_blocking: bool = False,
        memory_format: torch.memory_format = torch.preserve_format,
    ) -> Tensor:
        device = torch.device("cuda", device) if isinstance(device, int) else device or "cuda"
        return self.to(x, device, non_blocking=non_blocking, memory_format=memory_format)

    def numpy(self, x: Tensor, *, force: bool = False) -> Any:
        if is_on_device(x):
            if not force:
                raise TypeError(
                    f"can't convert {x.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to "
                    "host memory first."
                )
            x = self.cpu(x)
        self.cuda.check_complete(x)
        with torch._C.DisableTorchFunction():
            return Base.numpy(x, force=force)

    def array(self, x: Tensor, dtype: Any = None, copy: bool | None = None) -> Any:
        array = self.numpy(x)
        return array if dtype is None else array.astype(dtype, copy=False)

    def tolist(self, x: Tensor) -> Any:
        """One copy. PyTorch reads each element of a tensor on the device, but its copy to the host is one."""
        if is_on_device(x):
            self.cuda.record_copy("d2h", x, False, False, kind="tolist")
        else:
            self.cuda.check_complete(x)
        with torch._C.DisableTorchFunction():
            return Base.tolist(x)

    def pin_memory(self, x: Tensor, device: Any = None) -> Tensor:
        if is_on_device(x):
            raise RuntimeError(f"cannot pin '{x.type()}' only dense CPU tensors can be pinned")
        return pin(x.clone())

    def new_tensor(self, x: Tensor, data: Any, *, dtype: Any = None, device: Any = None, **options: Any) -> Tensor:
        return Creation(self.cuda).tensor(data, dtype=dtype or x.dtype, device=device or x.device, **options)


def as_method(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of an instance of another class, bound to tensors."""
    return lambda x, *args, **kwargs: function(x, *args, **kwargs)


class Creation:
    """Tensors from Python's numbers and arrays: made on the host, then copied."""

    def __init__(self, cuda: PretendCuda):
        self.cuda = cuda

    def tensor(
        self, data: Any, *, dtype: Any = None, device: Any = None, pin_memory: bool = False, **options: Any
    ) -> Tensor:
        if is_cuda(device):
            requires_grad = options.pop("requires_grad", False)
            return TENSOR(data, dtype=dtype).to(torch.device(device)).requires_grad_(requires_grad)
        x = TENSOR(data, dtype=dtype, device=device, **options)
        return pin(x) if pin_memory else x

    def as_tensor(self, data: Any, dtype: Any = None, device: Any = None) -> Tensor:
        if isinstance(data, Tensor):
            return data.to(device=device or data.device, dtype=dtype or data.dtype)
        return AS_TENSOR(data, dtype=dtype).to(device or "cpu")


def clone_storage(cuda: PretendCuda, storage: Any) -> Any:
    """As copy.deepcopy does."""
    index = getattr(storage, "cuda_index", None)
    with cuda.unobserved():
        result = type(storage)(storage.nbytes(), device="cpu").copy_(storage)
    if index is not None:
        result.cuda_index = index
        cuda.record_launches("storage copy")
    return result


def parse_to(*args: Any, **kwargs: Any) -> Any:
    """The arguments of `Tensor.to`. Those of another tensor are its device and dtype."""
    device, *rest = PARSE_TO(*args, **kwargs)
    other = kwargs.get("tensor", kwargs.get("other", args[0] if args else None))
    return (other.device if isinstance(other, Tensor) else device, *rest)


def group_tensors(lists: Any, with_indices: bool = False) -> Any:
    """For foreach operations: the device in each key is that of its tensors."""
    groups = {}
    for (device, dtype), (columns, indices) in GROUP_TENSORS(lists, with_indices).items():
        first = next((x for column in columns for x in column if x is not None), None)
        groups[(device if first is None else first.device, dtype)] = (columns, indices)
    return groups


def run_backward(cuda: PretendCuda, outputs: Any, *args: Any, **kwargs: Any) -> Any:
    """Autograd creates gradients of zero by itself."""
    with cuda.creating_on(first_index([outputs])):
        return RUN_BACKWARD(outputs, *args, **kwargs)


class PretendAutocast(torch.amp.autocast_mode.autocast):
    def __init__(self, device_type: str, *args: Any, **kwargs: Any):
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)
