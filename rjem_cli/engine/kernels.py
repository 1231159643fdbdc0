"""Which kernels passes use on a CUDA GPU: with or without TF32, and only reproducible ones or the fastest.

PyTorch's switches for this hold for the whole process. They are set around a pass and restored after it, so nothing
else in the process computes differently, and a pass never depends on what was set before.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Kernels:
    """`tf32`: products of fp32 tensors round their factors to 10 bits. `reproducible`: the same bits each time;
    otherwise cuDNN may time its algorithms and take the fastest."""

    tf32: bool = False
    reproducible: bool = True

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
        matmul.allow_tf32 = cudnn.allow_tf32 = self.tf32
        cudnn.deterministic, cudnn.benchmark = self.reproducible, not self.reproducible
        try:
            yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = before
