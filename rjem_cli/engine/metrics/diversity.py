"""How varied samples are: their classes, the spread within a class, copies of real images."""

import hashlib
import math

import torch
from torch import Tensor


def class_shares(labels_N: Tensor, num_classes: int) -> Tensor:
    """The share of each class, float64 (K,), summing to 1."""
    return torch.bincount(labels_N, minlength=num_classes).double() / len(labels_N)


def entropy(shares_K: Tensor) -> float:
    """In nats: 0 for a single class, log K for equal shares."""
    return float(torch.special.entr(shares_K.double()).sum())


def within_class_distance(features_ND: Tensor, labels_N: Tensor, num_classes: int) -> float:
    """Root mean square distance of two images of one class, averaged over the classes with at least two images; NaN if
    there are none. Computed as sqrt(2 tr cov), which needs no pairs."""
    spreads = []
    for label in range(num_classes):
        members = features_ND[labels_N == label].double()
        if len(members) > 1:
            spreads.append(float((2 * members.var(dim=0).sum()).sqrt()))
    return sum(spreads) / len(spreads) if spreads else math.nan


def exact_copies(pixels: Tensor, real_pixels: Tensor) -> int:
    """How many images equal a real one in every byte."""
    real_digests = set(hash_images(real_pixels))
    return sum(digest in real_digests for digest in hash_images(pixels))


def hash_images(pixels: Tensor) -> list[bytes]:
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in pixels.contiguous().numpy()]


def near_copies(distance_N: Tensor, spacing_M: Tensor) -> float:
    """The share of samples that are closer to a real image than the closest 1 % of real images are to each other: about
    0.01 for new images of the same kind, more for copies. distance_N: to the nearest real image; spacing_M: from each
    real image to its nearest neighbour."""
    return float((distance_N < spacing_M.double().quantile(0.01)).double().mean())
