"""Whether samples are many things, or one thing many times: classes, spread within a class, copies of real images."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor


def class_shares(labels_N: Tensor, num_classes: int) -> Tensor:
    """The share of each class, (K,) float64, adding up to 1."""
    return torch.bincount(labels_N, minlength=num_classes).double() / len(labels_N)


def entropy(shares_K: Tensor) -> float:
    """In nats: 0 for one class alone, log K for equal shares."""
    return float(torch.special.entr(shares_K.double()).sum())


def within_class_distance(features_ND: Tensor, labels_N: Tensor, num_classes: int) -> float:
    """Root mean square distance of two images of one class, averaged over the classes that have two or more; not a
    number where none has. For n images it is sqrt(2 tr cov), with no pair looked at."""
    spreads = []
    for label in range(num_classes):
        members = features_ND[labels_N == label].double()
        if len(members) > 1:
            spreads.append(float((2 * members.var(dim=0).sum()).sqrt()))
    return sum(spreads) / len(spreads) if spreads else math.nan


def exact_copies(pixels: Tensor, real_pixels: Tensor) -> int:
    """How many images equal a real one in every byte."""
    known = set(digests(real_pixels))
    return sum(digest in known for digest in digests(pixels))


def digests(pixels: Tensor) -> list[bytes]:
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in pixels.contiguous().numpy()]


def near_copies(distance_N: Tensor, spacing_M: Tensor) -> float:
    """The share of samples that are nearer to a real image than one in a hundred real images is to its fellow: about
    0.01 for new images of the same kind, more where training images come back."""
    return float((distance_N < spacing_M.double().quantile(0.01)).double().mean())
