"""The pass whose gradients train the network: in train mode, on all ranks."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rjem_cli.engine.model.shared_norm import share_statistics
from rjem_cli.engine.runtime import Runtime


class LossPass(nn.Module):
    """Several batches of images x (B, C, H, W) -> the logits (B, K) of each: in one pass with common BatchNorm
    statistics where `joint`, which needs batches of one size, else (as JEM++ does) one by one."""

    def __init__(self, model: nn.Module, runtime: Runtime, joint: bool):
        super().__init__()
        self.model, self.logits_of, self.joint = model, runtime.logits(model), joint

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        if self.joint:
            return list(self.logits_of(torch.cat(inputs)).chunk(len(inputs)))
        return [self.logits_of(x) for x in inputs]


def loss_pass(model: nn.Module, runtime: Runtime, joint: bool) -> nn.Module:
    """Of this process alone, or with gradients (means over the ranks) and BatchNorm statistics shared by all; then
    `model` has BatchNorms that need the other ranks while it is in train mode."""
    if runtime.ranks.world == 1:
        return LossPass(model, runtime, joint)
    share_statistics(model)
    devices = [runtime.device] if runtime.device.type == "cuda" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer PyTorch has another name for broadcast_buffers
        # statistics of the whole batch are the same on each rank already
        return DistributedDataParallel(LossPass(model, runtime, joint), devices, broadcast_buffers=False)
