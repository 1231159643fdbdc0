"""Averaged weights, which sample and are tested. They need BatchNorm statistics of their own: the live model's do not
fit them."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from rjem_cli.engine.data.images import ImageSet, to_model

STATISTICS_IMAGES = 2048
STATISTICS_BATCH = 128


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of `model`; decay 0 follows it exactly."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))


def refresh_statistics(model: nn.Module, images: ImageSet, noise_std: float, generator: torch.Generator) -> None:
    """Recompute every BatchNorm's running statistics on up to STATISTICS_IMAGES (noised) training images."""
    device = images.pixels.device
    chosen = torch.randperm(len(images), generator=generator, device=generator.device)[:STATISTICS_IMAGES].to(device)
    x = to_model(images.pixels[chosen])
    x = x + noise_std * torch.randn(x.shape, generator=generator, device=generator.device).to(device)
    update_bn(x.split(STATISTICS_BATCH), model)
    model.eval()
