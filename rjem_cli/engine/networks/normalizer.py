"""The first layer of networks that were written for images in [0, 1]."""

import torch
from torch import Tensor, nn


class Normalizer(nn.Module):
    """Images in [-1, 1] to [0, 1], minus a mean, over a standard deviation of each channel. They are part of the
    weights: 0 and 1, which leave the images in [0, 1], unless a file of another project has others."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return ((x_BCHW + 1) / 2 - self.mean[:, None, None]) / self.std[:, None, None]
