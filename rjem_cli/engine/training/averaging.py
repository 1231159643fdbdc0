"""The exponential moving average (EMA) of the weights, which generates samples and is evaluated."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from rjem_cli.engine.data.images import ImageSet, to_model

STATISTICS_IMAGES = 2048
STATISTICS_BATCH = 128


def build_ema(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of `model`; decay 0 follows it exactly.

    The decay of update t is min(decay, (1 + t) / (10 + t)), so that a short run is not an average of its first weights.
    """

    @torch.no_grad()
    def update(average: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        updates = torch.as_tensor(count, dtype=torch.float32)
        weight = 1 - ((1 + updates) / (10 + updates)).clamp(max=decay)
        for mean, value in zip(average, current):
            mean.lerp_(value, weight)

    return AveragedModel(model, multi_avg_fn=update)  # type: ignore[arg-type]


def refresh_statistics(model: nn.Module, images: ImageSet, noise_std: float, generator: torch.Generator) -> None:
    """Recompute the running statistics of each BatchNorm, since those of the live weights do not fit their average.

    Uses up to STATISTICS_IMAGES training images with the noise of training. `generator` lives on the host."""
    device = next(model.parameters()).device
    indices = torch.randperm(len(images), generator=generator)[:STATISTICS_IMAGES].to(images.pixels.device)
    x = to_model(images.pixels[indices].to(device))
    x = (x + noise_std * torch.randn(x.shape, generator=generator).to(device)).clamp(-1, 1)
    update_bn(torch.split(x, STATISTICS_BATCH), model)
    model.eval()
