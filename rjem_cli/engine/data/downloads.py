"""CIFAR-10, CIFAR-100 and SVHN through torchvision: downloaded once, checked by checksum, under a lock."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from rjem_cli import paths
from rjem_cli.engine.data.images import ImageSet
from rjem_cli.errors import AbsentError

DOWNLOADED = ("cifar10", "cifar100", "svhn")


def read_downloaded(name: str) -> tuple[ImageSet, ImageSet]:
    """(train, test) of `cifar10`, `cifar100` or `svhn`. Raises AbsentError if it is absent and cannot be downloaded."""
    folder = paths.datasets_dir() / name
    with paths.locked(folder):
        return tuple(read_part(name, folder, train) for train in (True, False))  # type: ignore[return-value]


def is_downloaded(name: str) -> bool:
    """Whether it is there, whole."""
    try:
        open_dataset(name, paths.datasets_dir() / name, train=False, download=False)
    except (RuntimeError, OSError):
        return False
    return True


def read_part(name: str, folder: Path, train: bool) -> ImageSet:
    try:
        return to_image_set(open_dataset(name, folder, train, download=False))
    except (RuntimeError, OSError):  # torchvision's word for "not there, or its checksum is wrong"
        if paths.offline():
            raise AbsentError(
                f"{name} is not in {folder} and RJEM_OFFLINE forbids the download; unset it, or give images of your own"
            ) from None
    try:
        return to_image_set(open_dataset(name, folder, train, download=True))
    except (RuntimeError, OSError) as error:
        raise AbsentError(
            f"{name} cannot be downloaded to {folder} ({error}); try again, or give images of your own"
        ) from None


def open_dataset(name: str, folder: Path, train: bool, download: bool) -> Any:
    from torchvision import datasets

    if name == "svhn":
        return datasets.SVHN(str(folder), split="train" if train else "test", download=download)
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    return kind(str(folder), train=train, download=download)


def to_image_set(dataset: Any) -> ImageSet:
    """torchvision stores CIFAR as (N, H, W, C) with `targets` and `classes`, SVHN as (N, C, H, W) with `labels`."""
    pixels = torch.as_tensor(dataset.data)
    if pixels.shape[-1] == 3:
        pixels = pixels.permute(0, 3, 1, 2).contiguous()
    labels = torch.as_tensor(dataset.targets if hasattr(dataset, "targets") else dataset.labels).long()
    names = getattr(dataset, "classes", None) or [str(digit) for digit in range(10)]
    return ImageSet(pixels, labels, tuple(re.sub(r"\s+", "_", name) for name in names))
