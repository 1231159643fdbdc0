"""Wide residual network in the form of TRADES (Zhang et al. 2019), which most robust classifiers of CIFAR-10 have.

It differs from JEM++'s form in five ways: ReLU, convolutions without bias, the stride on a block's first convolution, a
shortcut that takes the activated input where the shape changes, and images in [0, 1], which its normaliser makes.
"""

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from rjem_cli.engine.networks.normalizer import Normalizer
from rjem_cli.engine.networks.wide_resnet import spatial_mean


class TradesBlock(nn.Module):
    """BatchNorm, ReLU, 3x3 with the stride; BatchNorm, ReLU, 3x3; plus the shortcut."""

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.same_shape = channels_in == channels_out
        self.shortcut = (
            nn.Identity() if self.same_shape else nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        activated = F.relu(self.norm1(x_BCHW), inplace=True)
        hidden: Tensor = self.conv1(activated)
        hidden = self.conv2(F.relu(self.norm2(hidden), inplace=True))
        return hidden.add_(self.shortcut(x_BCHW if self.same_shape else activated))


class TradesWideResNet(nn.Module):
    """f: images (B, C, H, W) in [-1, 1] to logits (B, K)."""

    def __init__(self, channels: int, num_classes: int, depth: int, width: int):
        super().__init__()
        blocks_per_stage = (depth - 4) // 6
        widths = (16, 16 * width, 32 * width, 64 * width)
        self.normalizer = Normalizer(channels)
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        blocks = []
        for stage, (channels_in, channels_out) in enumerate(itertools.pairwise(widths)):
            blocks.append(TradesBlock(channels_in, channels_out, 2 if stage > 0 else 1))
            blocks += [TradesBlock(channels_out, channels_out, 1) for _ in range(blocks_per_stage - 1)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], num_classes)

    def features(self, x_BCHW: Tensor) -> Tensor:
        """The input of the last layer, (B, 64 * width)."""
        hidden = self.blocks(self.stem(self.normalizer(x_BCHW)))
        return spatial_mean(F.relu(self.norm(hidden), inplace=True))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.head(self.features(x_BCHW))
        return logits_BK
