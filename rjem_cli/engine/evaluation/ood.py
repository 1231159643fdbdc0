"""Can the model tell images of its own kind from others? Three scores of an image, and other images to hold them
against."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rjem_cli.engine.chains.pgd import Logits
from rjem_cli.engine.chains.sgld import energy_gradient
from rjem_cli.engine.data.images import ImageSet
from rjem_cli.engine.model.energy import energy
from rjem_cli.engine.ranks import ALONE, Ranks
from rjem_cli.engine.room import Room

SCORES = ("log_p", "max_p", "gradient")


class Looks(NamedTuple):
    """What a model says of N images: logits (N, K), E(x) (N,), and the length of dE/dx (N,); on the host."""

    logits: Tensor
    energy: Tensor
    gradient_norm: Tensor

    def scores(self) -> dict[str, Tensor]:
        """Larger for images that look familiar: log p(x) up to a constant, the largest p(y|x), and -|dE/dx|, the
        approximate mass (Grathwohl et al. 2020, section 5.3)."""
        return {"log_p": -self.energy, "max_p": log_odds(self.logits), "gradient": -self.gradient_norm}


def log_odds(logits_NK: Tensor) -> Tensor:
    """log(p / (1 - p)) of the largest p(y|x): the same order as p, without the ties of a confident network, whose
    probabilities are all 1 in floating point."""
    largest = logits_NK.max(dim=1)
    others = logits_NK.scatter(1, largest.indices[:, None], -torch.inf)
    return largest.values - others.logsumexp(dim=1)


def look_at(
    logits_of: Logits,
    x_NCHW: Tensor,
    device: torch.device,
    room: Room,
    report: Callable[[int], None],
    ranks: Ranks = ALONE,
) -> Looks:
    """One pass forward and backward over images in [-1, 1]. `logits_of` must be frozen."""

    def look_at_part(part: Tensor) -> Looks:
        logits: list[Tensor] = []

        def energy_of(x: Tensor) -> Tensor:
            logits.append(logits_of(x))
            return energy(logits[0])

        energy_B, gradient = energy_gradient(energy_of, part.to(device))
        return Looks(logits[0].detach(), energy_B, gradient.flatten(1).norm(dim=1))

    looks: list[Looks] = []
    parts = x_NCHW.split(room.asked)
    for found in ranks.spread(partial(room, look_at_part), parts):
        looks.append(found)
        report(sum(map(len, parts[: len(looks)])))
    return Looks(*(torch.cat(each).cpu() for each in zip(*looks)))


def auroc(inside_N: Tensor, outside_M: Tensor) -> float:
    """The chance that an image of the model's own kind scores above another one; 0.5 is guessing."""
    from sklearn.metrics import roc_auc_score

    labels = torch.cat([torch.ones(len(inside_N)), torch.zeros(len(outside_M))])
    return float(roc_auc_score(labels.numpy(), torch.cat([inside_N, outside_M]).double().numpy()))


def made_set(name: str, images: ImageSet, seed: int) -> Tensor:
    """As many images as there are, uint8 (N, C, H, W): `noise`, uniform; `constant`, each of one random colour;
    `shuffled`, the images with their pixels in random places; `interpolations`, halfway between two images, of two
    classes where there are several."""
    generator = torch.Generator().manual_seed(seed)
    pixels, (count, channels, height, width) = images.pixels, images.pixels.shape
    if name == "noise":
        return torch.randint(0, 256, pixels.shape, dtype=torch.uint8, generator=generator)
    if name == "constant":
        colours = torch.randint(0, 256, (count, channels, 1, 1), dtype=torch.uint8, generator=generator)
        return colours.expand(pixels.shape).contiguous()
    if name == "shuffled":
        places = torch.rand(count, 1, height * width, generator=generator).argsort(dim=2)
        return pixels.flatten(2).gather(2, places.expand(-1, channels, -1)).view(pixels.shape)
    assert name == "interpolations"
    partners = other_class(images.labels, generator)
    return ((pixels.int() + pixels[partners].int() + 1) // 2).to(torch.uint8)


def other_class(labels_N: Tensor, generator: torch.Generator) -> Tensor:
    """For each image the index of a random one of another class; of any where there is one class only."""
    order = labels_N.argsort(stable=True)  # a class is one stretch of this; the others are what follows it, in a circle
    counts = torch.bincount(labels_N)
    others = len(labels_N) - counts[labels_N]
    first_other = counts.cumsum(0)[labels_N]
    chance = torch.rand(len(labels_N), generator=generator, dtype=torch.float64)
    steps = (chance * torch.where(others > 0, others, len(labels_N))).long()
    return order[(first_other + steps) % len(labels_N)]


def fitted_to(pixels: Tensor, image_shape: tuple[int, int, int]) -> Tensor:
    """Images of another size or number of channels, as the model takes them: resized (bilinear, antialiased), grey in
    equal channels, colour as luminance (ITU-R 601)."""
    channels, height, width = image_shape
    if pixels.shape[1] == 3 and channels == 1:
        luminance = torch.tensor([0.299, 0.587, 0.114])[None, :, None, None]
        pixels = (pixels.float() * luminance).sum(dim=1, keepdim=True).round().to(torch.uint8)
    if pixels.shape[2:] != (height, width):
        resized = F.interpolate(pixels.float(), (height, width), mode="bilinear", antialias=True)
        pixels = resized.round().clamp(0, 255).to(torch.uint8)
    return pixels.expand(-1, channels, -1, -1)
