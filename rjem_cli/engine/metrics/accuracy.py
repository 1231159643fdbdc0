"""Accuracy, with its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.data.images import ImageSet, spread_indices, to_model
from rjem_cli.engine.gradients import Logits

BATCH = 128
Z95 = 1.959964  # 97.5 % point of the standard normal distribution


@dataclass(frozen=True)
class Accuracy:
    """`correct` of `count` images."""

    correct: int
    count: int

    @property
    def value(self) -> float:
        """Not a number for no image."""
        return self.correct / self.count if self.count else math.nan

    def interval(self) -> tuple[float, float]:
        """95 % interval of a proportion (Wilson 1927); never empty, also at 0 and 1; everything for no image."""
        if not self.count:
            return 0.0, 1.0
        share, count = self.value, self.count
        center = share + Z95**2 / (2 * count)
        spread = Z95 * math.sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2))
        scale = 1 + Z95**2 / count
        return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)

    def to_dict(self) -> dict[str, Any]:
        """As plain data; the value is null where there was nothing to count."""
        low, high = self.interval()
        value = self.value if self.count else None
        return {"value": value, "interval_95": [round(low, 5), round(high, 5)], "count": self.correct, "of": self.count}


def accuracy_per_class(correct: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The share of `correct` (bool, (N,)) among the images of each class that has any."""
    successes = torch.bincount(labels, weights=correct.double(), minlength=len(class_names)).tolist()
    counts = torch.bincount(labels, minlength=len(class_names)).tolist()
    return {
        name: Accuracy(int(success), count).to_dict()
        for name, success, count in zip(class_names, successes, counts)
        if count
    }


def evenly_spaced(images: ImageSet, limit: int) -> ImageSet:
    """At most `limit` images at fixed places spread over the set; 0 means all."""
    return images.subset(spread_indices(len(images), limit))


def accuracy(logits_of: Logits, images: ImageSet, device: torch.device) -> Accuracy:
    """Of images as they are, in smaller batches where memory is too small."""

    def are_right(rows: Tensor) -> tuple[Tensor]:
        x = to_model(images.pixels[rows].to(device))
        return (logits_of(x).argmax(dim=1) == images.labels[rows].to(device),)

    if not len(images):
        return Accuracy(0, 0)
    with torch.no_grad():
        (right,) = BatchSizer(BATCH).run(are_right, torch.arange(len(images), device=images.pixels.device))
    return Accuracy(int(right.sum()), len(images))
