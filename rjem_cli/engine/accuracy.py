"""Accuracy with its confidence interval, and calibration: whether a classifier's confidence matches its accuracy."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.data.images import ImageSet, spread_indices, to_model
from rjem_cli.engine.gradients import LogitsFn

BATCH_SIZE = 128
Z95 = 1.959964  # 97.5 % point of the standard normal distribution


@dataclass(frozen=True)
class Accuracy:
    """`correct` of `count` images."""

    correct: int
    count: int

    @property
    def value(self) -> float:
        """NaN if there are no images."""
        return self.correct / self.count if self.count else math.nan

    def interval(self) -> tuple[float, float]:
        """95 % interval of a proportion (Wilson 1927). It is never empty, and [0, 1] if there are no images."""
        if not self.count:
            return 0.0, 1.0
        share, count = self.value, self.count
        center = share + Z95**2 / (2 * count)
        spread = Z95 * math.sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2))
        scale = 1 + Z95**2 / count
        return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)

    def to_dict(self) -> dict[str, Any]:
        """For JSON. `value` is None if there are no images."""
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
    """At most `limit` fixed images, spread evenly over the set; 0 means all."""
    return images.subset(spread_indices(len(images), limit))


def accuracy(logits_fn: LogitsFn, images: ImageSet, device: torch.device) -> Accuracy:
    """The accuracy on unmodified images. Halves the batch size if memory is too small."""

    def classify(rows: Tensor) -> tuple[Tensor]:
        x = to_model(images.pixels[rows].to(device))
        return (logits_fn(x).argmax(dim=1) == images.labels[rows].to(device),)

    if not len(images):
        return Accuracy(0, 0)
    with torch.no_grad():
        (correct,) = BatchSizer(BATCH_SIZE).run(classify, torch.arange(len(images), device=images.pixels.device))
    return Accuracy(int(correct.sum()), len(images))


class CalibrationBin(NamedTuple):
    """The images whose confidence lies in one interval: their number, mean confidence and accuracy (NaN for none)."""

    images: int
    confidence: float
    accuracy: float


def reliability(confidence_N: Tensor, correct_N: Tensor, bins: int) -> list[CalibrationBin]:
    """Bins of equal width over (0, 1], each closed above; 0 belongs to the first. confidence_N: the largest p(y|x);
    correct_N: bool."""
    index_N = (confidence_N.double() * bins).ceil().long().clamp(1, bins) - 1
    count = torch.bincount(index_N, minlength=bins)
    confidence = torch.bincount(index_N, weights=confidence_N.double(), minlength=bins) / count
    accuracy = torch.bincount(index_N, weights=correct_N.double(), minlength=bins) / count
    return [CalibrationBin(*row) for row in zip(count.tolist(), confidence.tolist(), accuracy.tolist())]


def calibration_error(bins: list[CalibrationBin]) -> float:
    """The expected calibration error, in [0, 1]: the mean of |accuracy - confidence| over the bins, weighted by their
    number of images (Eq. 3, Guo et al. 2017)."""
    total = sum(bin.images for bin in bins)
    return sum(bin.images * abs(bin.accuracy - bin.confidence) for bin in bins if bin.images) / total
