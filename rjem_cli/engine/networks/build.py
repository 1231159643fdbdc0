"""The networks that rjem trains and reads, by the value of --arch."""

import torch
from torch import nn

from rjem_cli.config.training import ModelOptions
from rjem_cli.engine.networks import resnet50
from rjem_cli.engine.networks.resnet50 import SmallImageResNet50
from rjem_cli.engine.networks.trades_wide_resnet import TradesWideResNet
from rjem_cli.engine.networks.wide_resnet import WideResNet

Network = WideResNet | TradesWideResNet | SmallImageResNet50


def build_model(options: ModelOptions, channels: int, num_classes: int) -> Network:
    """A new network on the host."""
    if options.arch == "resnet50":
        return SmallImageResNet50(channels, num_classes)
    if options.arch == "wrn-trades":
        return TradesWideResNet(channels, num_classes, options.depth, options.width)
    return WideResNet(channels, num_classes, options.depth, options.width, options.norm_layer)


def feature_count(options: ModelOptions) -> int:
    """The size of `network.features` for one image."""
    return resnet50.FEATURES if options.arch == "resnet50" else 64 * options.width


def place(model: Network, device: torch.device) -> Network:
    """Move the network to a device, in the memory format that is faster there: channels_last, except for GroupNorm on
    CUDA. PyTorch's kernel for that takes contiguous images only: it would copy all images, and the next convolution
    would get the other format."""
    contiguous = device.type == "cuda" and any(isinstance(module, nn.GroupNorm) for module in model.modules())
    return model.to(device).to(memory_format=torch.contiguous_format if contiguous else torch.channels_last)
