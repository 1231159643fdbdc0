"""What CUDA refuses and what it costs, operation by operation."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.pretend_cuda.kernels import launch_count, make_contiguous, product_arithmetic
from tests.pretend_cuda.placement import (
    CPU,
    GET_DEVICE,
    PretendGenerator,
    device_index,
    is_on_device,
    is_pinned,
    pin,
    place,
    storage_of,
)

if TYPE_CHECKING:
    from tests.pretend_cuda.device import PretendCuda

# The host reads a number, or the size of the result, from the device.
SYNCS = {
    "_local_scalar_dense": "item",
    "nonzero": "nonzero",
    "masked_select": "nonzero",
    "_unique2": "unique",
    "unique_dim": "unique",
    "unique_consecutive": "unique",
    "bincount": "bincount",
    "equal": "equal",
    "multinomial": "multinomial",
    "_linalg_check_errors": "linalg",
    "_linalg_svd": "linalg",
    "_linalg_eigh": "linalg",
    "linalg_eig": "linalg",
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
# They take numbers from the host in tensors without dimensions, as pointwise operations do.
TAKES_HOST_NUMBERS = {"where", "fill", "fill_", "lerp", "lerp_", "masked_fill", "masked_fill_"}


@dataclass
class Operation:
    """A call of an ATen operation; `name` is without its namespace and overload."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @cached_property
    def name(self) -> str:
        return self.func._schema.name.rpartition("::")[2]

    @cached_property
    def tensors(self) -> list[Tensor]:
        return tensors_in((self.args, self.kwargs))

    @cached_property
    def leaves(self) -> list[Any]:
        return tree_leaves((self.args, self.kwargs))

    @cached_property
    def indices(self) -> list[int]:
        """Of the devices of its tensors, in their order."""
        return [index for index in map(device_index, self.tensors) if index is not None]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def run(self) -> Any:
        """On the CPU, whatever device was asked for."""
        kwargs = dict(self.kwargs)
        if getattr(kwargs.get("device"), "type", None) == "cuda":
            kwargs["device"] = CPU
        wants_pinned = kwargs.pop("pin_memory", False)
        result = self.func(*self.args, **kwargs)
        return pin(result) if wants_pinned else result


def tensors_in(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class FunctionRules(TorchFunctionMode):
    """Tensors that a function of PyTorch creates inside, for arguments on the device and without being told another,
    are on the device. Its C++ code takes the device from its arguments, which is the CPU here."""

    def __init__(self, cuda: PretendCuda):
        super().__init__()
        self.cuda = cuda

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        home = None if kwargs.get("device") is not None else first_index(args[:3])
        with self.cuda.creating_on(home):
            return func(*args, **kwargs)


def first_index(arguments: Iterable[Any]) -> int | None:
    """The device of the first tensor on a device, among arguments that are tensors or lists of them."""
    lists = (argument if isinstance(argument, list | tuple) else (argument,) for argument in arguments)
    indices = (device_index(x) for x in itertools.chain.from_iterable(lists) if isinstance(x, Tensor))
    return next((index for index in indices if index is not None), None)


class OperationRules(TorchDispatchMode):
    """The operations below autograd."""

    def __init__(self, cuda: PretendCuda):
        super().__init__()
        self.cuda = cuda

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = Operation(func, args, dict(kwargs or {}))
        if not self.cuda.observes:
            return operation.run()
        if torch.is_inference_mode_enabled():  # composite operations arrive in one piece
            with self:
                result = func.decompose(*args, **operation.kwargs)
            if result is not NotImplemented:
                return result
        with torch._C.DisableTorchFunction():
            args, result = operation.args, self.run(operation)
            graph = self.cuda.graph
            if graph is not None and any(device_index(x) == graph.device for x in tensors_in((args, result))):
                operation.args = args  # as they were before a change of the layout
                graph.operations.append((operation, result))
            return result

    def run(self, operation: Operation) -> Any:
        if operation.name == "copy_":
            return self.copy(operation)
        if operation.name == "_to_copy":
            return self.convert(operation)
        index = self.result_index(operation)
        self.check(operation, index)
        return operation.run() if index is None else self.run_on_device(operation, index)

    def result_index(self, operation: Operation) -> int | None:
        """The device that the operation runs on; None for the host."""
        device, home = operation.kwargs.get("device"), self.cuda.home
        if device is None:
            return operation.indices[0] if operation.indices else None
        return home if device.type == "cpu" and home is not None else self.cuda.resolve_index(device)

    def check(self, operation: Operation, index: int | None) -> None:
        """Raises RuntimeError for tensors and generators of different devices, and for data that are not there yet."""
        check_devices(operation)
        check_generators(operation, index)
        for x in operation.tensors:
            if storage_of(x) is None:
                if index is not None:
                    raise RuntimeError(f"{operation.name}: a tensor is on {GET_DEVICE(x)}, others are on cuda:{index}")
            elif not operation.func.is_view and not is_on_device(x):
                self.cuda.check_complete(x)

    def run_on_device(self, operation: Operation, index: int) -> Any:
        cuda, name = self.cuda, operation.name
        cuda.check_failure(name)
        record_syncs(cuda, operation)
        if arithmetic := product_arithmetic(operation):
            cuda.record_product(name, arithmetic)
        make_contiguous(cuda, operation)
        result = operation.run()
        storages = {id(storage_of(x)) for x in operation.tensors}
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and id(storage_of(x)) not in storages:
                place(x, index)
        if launches := launch_count(operation):
            cuda.record_launches(name, launches)
        return result

    def copy(self, operation: Operation) -> Any:
        """`target.copy_(source)`."""
        cuda, (target, source) = self.cuda, operation.args[:2]
        non_blocking = bool(operation.argument(2, "non_blocking", False))
        to_device, from_device = is_on_device(target), is_on_device(source)
        if not from_device:
            cuda.check_complete(source)
        if to_device and not from_device:
            cuda.record_copy("h2d", source, non_blocking, is_pinned(source))
        elif from_device and not to_device:
            cuda.record_copy("d2h", source, non_blocking, is_pinned(target))
            if non_blocking and is_pinned(target):
                cuda.start_copy_to(target)
        elif to_device:
            cuda.record_launches("copy_")
        return operation.run()

    def convert(self, operation: Operation) -> Any:
        """Another dtype or memory format on the same device, or a copy that C++ code makes to the device."""
        cuda, source, device = self.cuda, operation.args[0], operation.kwargs.get("device")
        index = device_index(source)
        if index is None:
            cuda.check_complete(source)
            if device is not None and device.type == "cuda":
                index = cuda.resolve_index(device)
                cuda.record_copy("h2d", source, bool(operation.kwargs.get("non_blocking")), is_pinned(source))
        else:
            cuda.record_launches("_to_copy")
        return place(operation.run(), index)


# --- devices ---


def check_devices(operation: Operation) -> None:
    """Raises RuntimeError for tensors of several devices, except where CUDA allows it."""
    indices, name = operation.indices, operation.name
    on_host = [x for x in operation.tensors if not is_on_device(x)]
    if len(set(indices)) > 1:
        raise different_devices(name, *(f"cuda:{index}" for index in sorted(set(indices))))
    if not indices or not on_host:
        return
    if name in INDEXING:
        check_indexing(operation)
        return
    takes_numbers = torch.Tag.pointwise in operation.func.tags or name in TAKES_HOST_NUMBERS
    if not (takes_numbers or name.startswith("_foreach")) or any(x.dim() for x in on_host):
        raise different_devices(name, f"cuda:{indices[0]}", "cpu")


def check_indexing(operation: Operation) -> None:
    """A tensor on the device takes indices from the host, which are copied."""
    x = operation.args[0]
    if not is_on_device(x):
        raise RuntimeError(
            f"indices should be either on cpu or on the same device as the indexed tensor (cpu) ({operation.name})"
        )
    values = operation.argument(2, "values")
    if values is not None and values.dim() and not is_on_device(values):
        raise different_devices(operation.name, "cuda:0", "cpu")


def check_generators(operation: Operation, index: int | None) -> None:
    """Raises RuntimeError for a generator that is not on the operation's device."""
    wanted = "cpu" if index is None else "cuda"
    for leaf in operation.leaves:
        if isinstance(leaf, torch._C.Generator):
            found = "cuda" if leaf._cdata in PretendGenerator.on_device else "cpu"
            if found != wanted:
                raise RuntimeError(
                    f"Expected a '{wanted}' device type for generator but found '{found}' ({operation.name})"
                )


def different_devices(name: str, *devices: str) -> RuntimeError:
    return RuntimeError(
        "Expected all tensors to be on the same device, but found at least two devices, "
        f"{' and '.join(devices)}! ({name})"
    )


# --- syncs ---


def record_syncs(cuda: PretendCuda, operation: Operation) -> None:
    """The syncs inside an operation on the device."""
    name = operation.name
    if name in SYNCS:
        cuda.record_sync(SYNCS[name])
    elif name == "repeat_interleave" and operation.kwargs.get("output_size") is None:
        cuda.record_sync("repeat_interleave")
    elif name in INDEXING:
        record_indexing(cuda, operation)


def record_indexing(cuda: PretendCuda, operation: Operation) -> None:
    """The copies of indices from the host, and the nonzero() of masks."""
    indices = [x for x in operation.args[1] if x is not None]
    for x in indices:
        if not is_on_device(x):
            cuda.record_copy("h2d", x, False, is_pinned(x))
    values = operation.argument(2, "values")
    fills = values is not None and values.dim() == 0 and len(operation.args[1]) == 1  # becomes masked_fill
    if not fills and any(x.dtype in (torch.bool, torch.uint8) for x in indices):
        cuda.record_sync("mask index")
