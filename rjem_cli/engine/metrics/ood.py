"""Out-of-distribution detection: three scores of an image, and other images to compare with the test images."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.callbacks import noop
from rjem_cli.engine.data.images import ImageSet
from rjem_cli.engine.gradients import LogitsFn, value_and_grad
from rjem_cli.engine.models.energy import energy

SCORES = {"log_p": "-E(x)", "max_p": "max p(y|x)", "gradient": "-|dE/dx|"}  # name: formula


class Outputs(NamedTuple):
    """What a model computes for N images: logits (N, K), E(x) (N,), and the L2 norm of dE/dx (N,); on the host."""

    logits: Tensor
    energy: Tensor
    gradient_norm: Tensor

    def scores(self) -> dict[str, Tensor]:
        """SCORES (N,), higher for in-distribution images: log p(x) up to a constant, the largest p(y|x) (as log
        odds), and -|dE/dx|, the approximate mass (Grathwohl et al. 2020, section 5.3)."""
        return {"log_p": -self.energy, "max_p": log_odds(self.logits), "gradient": -self.gradient_norm}


def log_odds(logits_NK: Tensor) -> Tensor:
    """log(p / (1 - p)) of the largest p(y|x). It orders images as p does, but has no ties for a confident network,
    whose probabilities are all 1 in floating point."""
    largest = logits_NK.max(dim=1)
    others = logits_NK.scatter(1, largest.indices[:, None], -torch.inf)
    return largest.values - others.logsumexp(dim=1)


def compute_outputs(
    logits_fn: LogitsFn,
    x_NCHW: Tensor,
    device: torch.device,
    batches: BatchSizer,
    on_progress: Callable[[int], None] = noop,
) -> Outputs:
    """One forward and backward pass over images in [-1, 1]. `logits_fn` must be frozen. `on_progress` gets the number
    of images done."""

    def compute(x_BCHW: Tensor) -> Outputs:
        logits_BK, energy_B, gradient = value_and_grad(logits_fn, energy, x_BCHW.to(device))
        return Outputs(logits_BK, energy_B, gradient.flatten(1).norm(dim=1))

    parts, done = [], 0
    for x_BCHW in x_NCHW.split(batches.batch_size):
        parts.append(batches.run(compute, x_BCHW))
        done += len(x_BCHW)
        on_progress(done)
    return Outputs(*(torch.cat(column).cpu() for column in zip(*parts)))


def auroc(inside_N: Tensor, outside_M: Tensor) -> float:
    """The probability that an in-distribution image scores above another image; 0.5 is chance."""
    from sklearn.metrics import roc_auc_score

    labels = torch.cat([torch.ones(len(inside_N)), torch.zeros(len(outside_M))])
    return float(roc_auc_score(labels.numpy(), torch.cat([inside_N, outside_M]).double().numpy()))


def synthetic_set(name: str, images: ImageSet, seed: int) -> Tensor:
    """As many images as `images` has, uint8 (N, C, H, W). `noise`: uniform; `constant`: one random colour per image;
    `shuffled`: the images with their pixels permuted; `interpolations`: the mean of two images, of different classes
    if there are several."""
    generator = torch.Generator().manual_seed(seed)
    pixels, (count, channels, height, width) = images.pixels, images.pixels.shape
    if name == "noise":
        return torch.randint(0, 256, pixels.shape, dtype=torch.uint8, generator=generator)
    if name == "constant":
        colours = torch.randint(0, 256, (count, channels, 1, 1), dtype=torch.uint8, generator=generator)
        return colours.expand(pixels.shape).contiguous()
    if name == "shuffled":
        order = torch.rand(count, 1, height * width, generator=generator).argsort(dim=2)
        return pixels.flatten(2).gather(2, order.expand(-1, channels, -1)).view(pixels.shape)
    assert name == "interpolations"
    partners = other_class(images.labels, generator)
    return ((pixels.int() + pixels[partners].int() + 1) // 2).to(torch.uint8)


def other_class(labels_N: Tensor, generator: torch.Generator) -> Tensor:
    """For each image the index of a random image of another class; of any image if there is only one class."""
    order = labels_N.argsort(stable=True)  # a class is one stretch of this; the others follow it, in a circle
    counts = torch.bincount(labels_N)
    others = len(labels_N) - counts[labels_N]
    first_other = counts.cumsum(0)[labels_N]
    chance = torch.rand(len(labels_N), generator=generator, dtype=torch.float64)
    steps = (chance * torch.where(others > 0, others, len(labels_N))).long()
    return order[(first_other + steps) % len(labels_N)]


def fit_shape(pixels: Tensor, image_shape: tuple[int, int, int]) -> Tensor:
    """Images in the shape (C, H, W) that the model takes: resized (bilinear, antialiased), grey repeated in each
    channel, colour as luminance (ITU-R 601)."""
    channels, height, width = image_shape
    if pixels.shape[1] == 3 and channels == 1:
        luminance = torch.tensor([0.299, 0.587, 0.114])[None, :, None, None]
        pixels = (pixels.float() * luminance).sum(dim=1, keepdim=True).round().to(torch.uint8)
    if pixels.shape[2:] != (height, width):
        resized = F.interpolate(pixels.float(), (height, width), mode="bilinear", antialias=True)
        pixels = resized.round().clamp(0, 255).to(torch.uint8)
    return pixels.expand(-1, channels, -1, -1)
