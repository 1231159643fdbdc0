"""Wide residual network (Zagoruyko & Komodakis 2016) in JEM++'s form.

Pre-activation, LeakyReLU 0.2, the stride on a block's second convolution, a 1x1 shortcut where the shape changes, no
dropout. Images of any size, with 1 or 3 channels.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAKY_SLOPE = 0.2
BATCH_NORM_MOMENTUM = 0.1  # JEM++ has 0.9: its running statistics are almost those of the last batch


class GroupNorm(nn.GroupNorm):
    """On a CPU it computes in fp32 for images in half precision: PyTorch's kernel for bf16 takes longer than that for
    fp32 and both conversions."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if x_BCHW.device.type != "cpu" or x_BCHW.dtype not in (torch.bfloat16, torch.float16):
            return super().forward(x_BCHW)
        weight, bias = self.weight.float(), self.bias.float()
        return F.group_norm(x_BCHW.float(), self.num_groups, weight, bias, self.eps).to(x_BCHW.dtype)


def spatial_mean(x_BCHW: Tensor) -> Tensor:
    """The mean over height and width, (B, C). The permutation gives the gradient the channels_last format of x. The
    gradient of x.mean(dim=(2, 3)) is contiguous, and operations on two formats are slow."""
    if x_BCHW.is_contiguous():
        return x_BCHW.mean(dim=(2, 3))
    return x_BCHW.permute(0, 2, 3, 1).mean(dim=(1, 2))


def norm_layer(kind: str, channels: int) -> nn.Module:
    """`batch`, `group` (groups of 8 channels) or `none`."""
    if kind == "batch":
        return nn.BatchNorm2d(channels, momentum=BATCH_NORM_MOMENTUM)
    if kind == "group":
        return GroupNorm(max(1, channels // 8), channels)
    return nn.Identity()


def activate(x_BCHW: Tensor, inplace: bool = True) -> Tensor:
    """LeakyReLU. In place it takes a third less memory and traffic. That is safe because no gradient needs the output
    of a convolution, a norm or a sum."""
    return F.leaky_relu(x_BCHW, LEAKY_SLOPE, inplace=inplace)


class Block(nn.Module):
    """norm, activation, 3x3; norm, activation, 3x3 with the stride; plus the shortcut."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, norm: str):
        super().__init__()
        self.norm1 = norm_layer(norm, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = norm_layer(norm, channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, stride=stride, padding=1)
        same_shape = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if same_shape else nn.Conv2d(channels_in, channels_out, 1, stride=stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        without_norm = isinstance(self.norm1, nn.Identity)  # then the shortcut needs what is activated
        hidden: Tensor = self.conv1(activate(self.norm1(x_BCHW), inplace=not without_norm))
        hidden = self.conv2(activate(self.norm2(hidden)))
        return hidden.add_(self.shortcut(x_BCHW))


class WideResNet(nn.Module):
    """f: images (B, C, H, W) in [-1, 1] to logits (B, K)."""

    def __init__(self, channels: int, num_classes: int, depth: int, width: int, norm: str):
        super().__init__()
        blocks_per_stage = (depth - 4) // 6
        widths = (16, 16 * width, 32 * width, 64 * width)
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        blocks = []
        for stage, (channels_in, channels_out) in enumerate(itertools.pairwise(widths)):
            blocks.append(Block(channels_in, channels_out, 2 if stage > 0 else 1, norm))
            blocks += [Block(channels_out, channels_out, 1, norm) for _ in range(blocks_per_stage - 1)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm_layer(norm, widths[-1])
        self.head = nn.Linear(widths[-1], num_classes)

    def features(self, x_BCHW: Tensor) -> Tensor:
        """The input of the last layer, (B, 64 * width)."""
        hidden = self.blocks(self.stem(x_BCHW))
        return spatial_mean(activate(self.norm(hidden)))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.head(self.features(x_BCHW))
        return logits_BK
