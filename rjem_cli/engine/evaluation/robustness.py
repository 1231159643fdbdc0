"""Accuracy on clean and on attacked images, with intervals. Radii in model units."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rjem_cli.engine.chains.pgd import pgd
from rjem_cli.engine.data.images import ImageSet, to_model

Report = Callable[[int], None]
BATCH = 128
Z95 = 1.959964  # 97.5 % point of the standard normal distribution


@dataclass(frozen=True)
class Accuracy:
    """`correct` of `count` images."""

    correct: int
    count: int

    @property
    def value(self) -> float:
        return self.correct / self.count

    def interval(self) -> tuple[float, float]:
        """95 % interval of a proportion (Wilson 1927); never empty, also at 0 and 1."""
        share, count = self.value, self.count
        center = share + Z95**2 / (2 * count)
        spread = Z95 * math.sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2))
        scale = 1 + Z95**2 / count
        return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)


def evenly_spaced(images: ImageSet, limit: int) -> ImageSet:
    """At most `limit` images at fixed places spread over the set; 0 means all."""
    if limit == 0 or limit >= len(images):
        return images
    return images.subset(torch.linspace(0, len(images) - 1, limit).round().long())


def accuracy(
    logits_of: Callable[[Tensor], Tensor], images: ImageSet, device: torch.device, report: Report = lambda done: None
) -> Accuracy:
    """`report` hears how many images are done."""
    return _measure(logits_of, images, device, lambda x, labels: x, report)


def robust_accuracy(
    logits_of: Callable[[Tensor], Tensor],
    images: ImageSet,
    device: torch.device,
    *,
    eps: float,
    steps: int,
    norm: str,
    report: Report = lambda done: None,
) -> Accuracy:
    """Under PGD from the image itself, with the default step size, inside the box. `logits_of` must be frozen."""

    def attack(x: Tensor, labels: Tensor) -> Tensor:
        return pgd(logits_of, x, labels, eps=eps, steps=steps, norm=norm)

    return _measure(logits_of, images, device, attack, report)


def _measure(
    logits_of: Callable[[Tensor], Tensor],
    images: ImageSet,
    device: torch.device,
    attack: Callable[[Tensor, Tensor], Tensor],
    report: Report,
) -> Accuracy:
    correct = torch.zeros((), dtype=torch.long, device=device)
    done = 0
    for pixels, labels in zip(images.pixels.split(BATCH), images.labels.split(BATCH)):
        labels = labels.to(device)
        x = attack(to_model(pixels.to(device)), labels)
        with torch.no_grad():
            correct += (logits_of(x).argmax(dim=1) == labels).sum()
        done += len(labels)
        report(done)
    return Accuracy(int(correct), len(images))
