"""BatchNorm whose statistics, while it trains, are of the whole batch that several processes hold parts of."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

SUMMED = (0, 2, 3)  # of (B, C, H, W), to statistics per channel


class SumOverRanks(torch.autograd.Function):
    """Every rank's loss depends on the sum, so a rank's part has the sum of all their gradients."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return total(x)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return total(gradients[0])


def total(x: Tensor) -> Tensor:
    x = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x)
    return x


class SharedBatchNorm2d(nn.BatchNorm2d):
    """nn.SyncBatchNorm for any device: Algorithm 1, Ioffe & Szegedy 2015, over the images of all ranks, each of which
    holds as many; where it does not train, nn.BatchNorm2d."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x_BCHW)
        count = x_BCHW.numel() // x_BCHW.shape[1] * dist.get_world_size()
        mean = SumOverRanks.apply(x_BCHW.float().sum(SUMMED)) / count
        centred = x_BCHW - mean[:, None, None]
        variance = SumOverRanks.apply(centred.float().square().sum(SUMMED)) / count
        self.follow(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias[:, None, None], centred, scale[:, None, None]).to(x_BCHW.dtype)

    @torch.no_grad()
    def follow(self, mean: Tensor, variance: Tensor) -> None:
        """The running statistics move on by the momentum."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


def share_statistics(module: nn.Module) -> None:
    """Put one that shares its statistics in the place of every BatchNorm in `module`, with the same weights."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            shared = SharedBatchNorm2d(child.num_features, child.eps, child.momentum).to(child.weight)
            shared.load_state_dict(child.state_dict())
            setattr(module, name, shared)
        else:
            share_statistics(child)
