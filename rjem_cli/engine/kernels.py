"""Which kernels passes use on a CUDA GPU: with or without TF32, and only reproducible ones or the fastest.

PyTorch's switches for this hold for the whole process. They are set around a pass and restored after it, so a pass
never depends on what was set before, and nothing computes differently after it. Other threads see the switches while a
pass runs.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch


@dataclass(frozen=True)
class Kernels:
    """`tf32`: products of fp32 tensors round their factors to 10 bits. `reproducible`: the same bits each time;
    otherwise cuDNN may time its algorithms and take the fastest."""

    tf32: bool = False
    reproducible: bool = True

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        cudnn = torch.backends.cudnn
        restore, before = use_tf32(self.tf32), (cudnn.deterministic, cudnn.benchmark)
        cudnn.deterministic, cudnn.benchmark = self.reproducible, not self.reproducible
        try:
            yield
        finally:
            cudnn.deterministic, cudnn.benchmark = before
            restore()


def kernels_of(logits_fn: Any) -> Kernels:
    """The kernels of a frozen network. Any other function gets fp32 products and reproducible kernels."""
    kernels: Kernels = getattr(logits_fn, "kernels", Kernels())
    return kernels


def use_tf32(enabled: bool) -> Callable[[], None]:
    """Switch TF32 on or off, and return a function that restores what was before. PyTorch has older and newer switches.
    It refuses to read the older ones once the newer ones differ from them, so then the newer ones are used."""
    matmul, cudnn = torch.backends.cuda.matmul, cast(Any, torch.backends.cudnn)
    newer = matmul.fp32_precision, cudnn.conv.fp32_precision
    try:
        older = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    except RuntimeError:
        matmul.fp32_precision = cudnn.conv.fp32_precision = "tf32" if enabled else "ieee"

        def restore_newer() -> None:
            matmul.fp32_precision, cudnn.conv.fp32_precision = newer

        return restore_newer
    torch.set_float32_matmul_precision("high" if enabled else "highest")
    cudnn.allow_tf32 = enabled

    def restore_older() -> None:
        torch.set_float32_matmul_precision(older[0])
        cudnn.allow_tf32 = older[1]

    return restore_older
