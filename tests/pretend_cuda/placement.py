"""Where tensors and generators are.

PyTorch keeps one Python object per storage, so an attribute of it is shared by all views and lives as long as the data.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

CPU = torch.device("cpu")
GET_DEVICE = torch._C.TensorBase.device.__get__  # the one that is not patched


def storage_of(x: Tensor) -> Any:
    """None for a tensor without a storage."""
    try:
        return x.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None


def device_index(x: Tensor) -> int | None:
    """The index of the device that `x` is on; None on the host."""
    return getattr(storage_of(x), "cuda_index", None)


def is_on_device(x: Tensor) -> bool:
    return device_index(x) is not None


def place(x: Tensor, index: int | None) -> Tensor:
    """Declare a new CPU tensor to be on a device; None leaves it on the host."""
    storage = storage_of(x)
    if index is not None and storage is not None and GET_DEVICE(x).type == "cpu":
        storage.cuda_index = index
    return x


def is_pinned(x: Tensor) -> bool:
    return getattr(storage_of(x), "pinned", False)


def pin(x: Tensor) -> Tensor:
    """Declare a host tensor to be in pinned memory."""
    x.untyped_storage().pinned = True
    return x


def is_cuda(device: Any) -> bool:
    """Whether this value of a `device` argument is a CUDA device. A number is the index of one."""
    if device is None or isinstance(device, Tensor | bool):
        return False
    return isinstance(device, int) or torch.device(device).type == "cuda"


class PretendGenerator(torch._C.Generator):  # type: ignore[misc, name-defined]
    """A CPU generator with the device that was asked for. Operations get another Python object for the same generator,
    which has the same address."""

    on_device: ClassVar[set[int]] = set()  # addresses

    def __new__(cls, device: Any = "cpu") -> PretendGenerator:
        generator: PretendGenerator = super().__new__(cls, "cpu")
        if is_cuda(device):
            cls.on_device.add(generator._cdata)
        else:  # another generator may have had this address
            cls.on_device.discard(generator._cdata)
        return generator

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0) if self._cdata in self.on_device else CPU
