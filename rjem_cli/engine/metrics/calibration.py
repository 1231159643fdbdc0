"""Whether a classifier's confidence means what it says."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Bin(NamedTuple):
    """Images whose confidence lies in one interval: how many, their mean confidence, and their accuracy."""

    images: int
    confidence: float
    accuracy: float


def reliability(confidence_N: Tensor, right_N: Tensor, bins: int) -> list[Bin]:
    """`bins` intervals of equal width over (0, 1], each closed above; those that are empty have NaN for both means.
    confidence_N: the largest p(y|x); right_N: bool."""
    place = (confidence_N.double() * bins).ceil().long().clamp(1, bins) - 1
    count = torch.bincount(place, minlength=bins)
    confidence = torch.bincount(place, weights=confidence_N.double(), minlength=bins) / count
    accuracy = torch.bincount(place, weights=right_N.double(), minlength=bins) / count
    return [Bin(*row) for row in zip(count.tolist(), confidence.tolist(), accuracy.tolist())]


def calibration_error(bins: list[Bin]) -> float:
    """The expected calibration error, in [0, 1]: the mean of |accuracy - confidence| over bins, weighted by their
    images (Eq. 3, Guo et al. 2017)."""
    total = sum(each.images for each in bins)
    return sum(each.images * abs(each.accuracy - each.confidence) for each in bins if each.images) / total
