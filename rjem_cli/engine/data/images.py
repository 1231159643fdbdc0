"""Labelled images as uint8, and the way to and from the network's range.

`pixels` is uint8 (N, C, H, W); `x` is float in [-1, 1], the range chains live in.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rjem_cli.errors import DataError

SPLIT_SEED = 20220  # fixed: a data set has one split, whatever the run's seed
TEST_FRACTION = 0.2  # of a data set that comes without a test set


def to_model(pixels: Tensor) -> Tensor:
    """uint8 0..255 to float32 [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1)


def to_pixels(x: Tensor) -> Tensor:
    """Float to uint8: rounded, and clamped to [-1, 1] first."""
    return x.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def pixels_digest(pixels: Tensor) -> str:
    """sha256 over shape and pixels, in their order."""
    content = hashlib.sha256(repr(tuple(pixels.shape)).encode())
    content.update(pixels.contiguous().numpy().data)
    return content.hexdigest()


@dataclass(frozen=True)
class ImageSet:
    """Images and labels. pixels: uint8 (N, C, H, W), C = 1 or 3. labels: (N,), any integer type, stored as int64.
    Raises TypeError for other types, and ValueError for other shapes or labels out of range."""

    pixels: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        pixels, labels = self.pixels, self.labels
        if not isinstance(pixels, Tensor) or not isinstance(labels, Tensor):
            raise TypeError(f"pixels and labels are {type(pixels).__name__} and {type(labels).__name__}; give tensors")
        if pixels.dtype != torch.uint8:
            hint = "; for x in [0, 1]: (255 * x).round().to(torch.uint8)" if pixels.is_floating_point() else ""
            raise TypeError(f"pixels have dtype {pixels.dtype}; give torch.uint8 from 0 to 255{hint}")
        if pixels.dim() != 4 or pixels.shape[1] not in (1, 3):
            raise ValueError(f"pixels have shape {tuple(pixels.shape)}; give (N, C, H, W) with C = 1 or 3")
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise TypeError(f"labels have dtype {labels.dtype}; give integers")
        if labels.shape != pixels.shape[:1]:
            raise ValueError(
                f"labels have shape {tuple(labels.shape)} for {len(pixels)} images; give one for each image"
            )
        labels = labels.long()
        if labels.device.type == "cpu" and len(labels):  # on a GPU this would force a synchronization
            low, high, count = int(labels.min()), int(labels.max()), len(self.class_names)
            if low < 0 or high >= count:
                raise ValueError(
                    f"labels range from {low} to {high} with {count} class names; give labels from 0 to {count - 1}"
                )
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def subset(self, indices: Tensor) -> ImageSet:
        return replace(self, pixels=self.pixels[indices], labels=self.labels[indices])

    def to(self, device: torch.device) -> ImageSet:
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))

    def digest(self) -> str:
        """sha256 over names, shape, labels and pixels: what caches of anything fitted to these images are keyed by."""
        content = hashlib.sha256(repr((self.class_names, tuple(self.pixels.shape))).encode())
        content.update(self.labels.cpu().numpy().tobytes())
        content.update(self.pixels.cpu().contiguous().numpy().tobytes())
        return content.hexdigest()


@dataclass(frozen=True)
class Splits:
    """One data set, in parts that share no image."""

    name: str
    train: ImageSet
    val: ImageSet
    test: ImageSet

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.class_names


def shuffled(count: int) -> Tensor:
    """A fixed permutation of `count` indices."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED))


def spread_indices(count: int, limit: int) -> Tensor:
    """At most `limit` fixed places spread evenly over `count`; 0 means all."""
    if limit == 0 or limit >= count:
        return torch.arange(count)
    gaps = max(1, limit - 1)
    return (2 * torch.arange(limit) * (count - 1) + gaps) // (2 * gaps)  # rounded in integers: no place comes twice


def split_off(images: ImageSet, fraction: float) -> tuple[ImageSet, ImageSet]:
    """(the rest, a fixed random share of each class), each in its old order, so that small classes are in both
    parts."""
    order = shuffled(len(images))
    chosen = torch.zeros(len(images), dtype=torch.bool)
    for label in range(len(images.class_names)):
        members = order[images.labels[order] == label]
        chosen[members[: round(fraction * len(members))]] = True
    return images.subset((~chosen).nonzero().squeeze(1)), images.subset(chosen.nonzero().squeeze(1))


def make_splits(name: str, images: ImageSet, test: ImageSet | None, val_fraction: float) -> Splits:
    """Validation, and the test set where none is given, split off with a fixed seed. Raises DataError if a class ends
    up empty."""
    if test is None:
        images, test = split_off(images, TEST_FRACTION)
    train, val = split_off(images, val_fraction)
    counts = torch.bincount(train.labels, minlength=len(train.class_names))
    for label, class_name in enumerate(train.class_names):
        if counts[label] == 0:
            raise DataError(f"class {class_name!r} of {name} has no training image; add some or remove its folder")
    if len(test) == 0:
        raise DataError(
            f"{name} has too few images to split off a test set; add images, or name a test set with --test-data"
        )
    return Splits(name, train, val, test)
