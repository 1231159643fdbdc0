"""Where chains begin. Each start is a stage: it takes no images, only the labels and seeds, and row i depends on
labels_B[i] and seeds_B[i] alone."""

from __future__ import annotations

import torch
from torch import Tensor

from rjem_cli.engine.chains.noise import PRIOR_STREAM, START_STREAM, standard_normal, uniform
from rjem_cli.engine.chains.stages import Sampler
from rjem_cli.engine.data.images import to_model
from rjem_cli.engine.model.prior import ClassGaussianPrior


def prior_draws(prior: ClassGaussianPrior) -> Sampler:
    """Draws from the Gaussian of each class (JEM++'s informative initialisation)."""

    def start(x: Tensor | None, labels_B: Tensor, seeds_B: Tensor) -> Tensor:
        return prior.sample(labels_B, standard_normal(seeds_B, (prior.normals_per_sample,), PRIOR_STREAM))

    return Sampler((start,))


def uniform_noise(image_shape: tuple[int, int, int]) -> Sampler:
    """Uniform noise in [-1, 1] (JEM's initialisation)."""

    def start(x: Tensor | None, labels_B: Tensor, seeds_B: Tensor) -> Tensor:
        return 2 * uniform(seeds_B, image_shape, START_STREAM) - 1

    return Sampler((start,))


def random_images(pixels: Tensor, labels_N: Tensor | None = None) -> Sampler:
    """One of these uint8 images (N, C, H, W), drawn at random among those of the wanted class; without labels, among
    all. Raises ValueError for a class between 0 and the largest that has no image."""
    of_any_class = labels_N is None
    labels_N = torch.zeros(len(pixels), dtype=torch.long) if labels_N is None else labels_N.cpu()
    order = labels_N.argsort(stable=True).to(pixels.device)
    counts = torch.bincount(labels_N)
    if not counts.all():
        raise ValueError(f"class {int((counts == 0).nonzero()[0])} has no image")
    counts = counts.to(pixels.device)
    begins = counts.cumsum(0) - counts

    def start(x: Tensor | None, labels_B: Tensor, seeds_B: Tensor) -> Tensor:
        kinds = (torch.zeros_like(labels_B) if of_any_class else labels_B).to(pixels.device, non_blocking=True)
        chance = uniform(seeds_B, (1,), START_STREAM).squeeze(1).to(pixels.device)
        among = ((1 - chance) * counts[kinds]).long().clamp_max(counts[kinds] - 1)
        return to_model(pixels[order[begins[kinds] + among]]).to(seeds_B.device)

    return Sampler((start,))


def given_images(pixels: Tensor, first_seed: int) -> Sampler:
    """These uint8 images in their order: chain i begins at image i modulo their number."""

    def start(x: Tensor | None, labels_B: Tensor, seeds_B: Tensor) -> Tensor:
        return to_model(pixels[(seeds_B - first_seed).to(pixels.device) % len(pixels)]).to(seeds_B.device)

    return Sampler((start,))
