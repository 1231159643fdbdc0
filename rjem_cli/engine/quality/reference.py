"""What samples are compared with: part of a built-in data set, any set of images, or statistics that somebody made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rjem_cli.config import DATASETS, DataOptions
from rjem_cli.engine.data.collection import ImageCollection, load_arrays, read_collection
from rjem_cli.engine.data.images import ImageSet, Splits
from rjem_cli.engine.data.load import load_splits, own_splits
from rjem_cli.errors import AbsentError, ConfigError, DataError, did_you_mean
from rjem_cli.paths import expand

PARTS = ("train", "test", "all")
STATISTICS_KEYS = ("mu", "sigma")  # of pytorch-fid, TTUR, EDM and ADM alike


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and covariance (D, D) of features, float64."""

    mu: np.ndarray
    sigma: np.ndarray


@dataclass(frozen=True)
class Reference:
    """`images` or `statistics`. `splits` gives the data set that the images are from, for a judge to be trained on;
    it raises DataError for images without classes."""

    name: str
    images: ImageCollection | None = None
    statistics: Statistics | None = None
    splits: Callable[[], Splits] | None = None


def default_reference(meta: dict[str, Any] | None) -> str:
    """What the samples' meta.json names, else cifar10."""
    dataset = (meta or {}).get("dataset")
    if not isinstance(dataset, dict):
        return "cifar10"
    if dataset.get("data"):
        return f"{dataset['data']}:train"
    return str(dataset.get("name") or "cifar10")


def read_reference(text: str, part: str, test_data: str | None = None) -> Reference:
    """`cifar10:test`, `cifar10` (its `part`), a path or `path:test`, statistics.npz. Raises ConfigError for an unknown
    name, AbsentError for what is not there, DataError for what cannot be used."""
    name, _, own_part = text.rpartition(":")
    if not name or own_part not in PARTS:
        name, own_part = text, ""
    if name in DATASETS:
        splits = load_splits(DataOptions(dataset=name, val_fraction=0.0))
        return of_splits(f"{name}:{own_part or part}", splits, own_part or part)
    path = expand(name)
    if not path.exists():
        hint = did_you_mean(name, DATASETS) if "/" not in name and "." not in name else "give a path that is"
        raise (ConfigError if "/" not in name and "." not in name else AbsentError)(
            f"--reference {text} is no data set and no file; {hint}"
        )
    if path.suffix.lower() == ".npz" and (statistics := read_statistics(path)) is not None:
        return Reference(text, statistics=statistics)
    images = read_collection(name)

    def own() -> Splits:
        return own_splits(images.parts(), name, test_data, val_fraction=0.0)

    if own_part in ("", "all"):
        return Reference(text, images, splits=own)
    return of_splits(text, own(), own_part)


def of_splits(name: str, splits: Splits, part: str) -> Reference:
    chosen = {"train": [splits.train], "test": [splits.test], "all": [splits.train, splits.test]}[part]
    images = ImageSet(
        torch.cat([images.pixels for images in chosen]),
        torch.cat([images.labels for images in chosen]),
        splits.class_names,
    )
    return Reference(name, ImageCollection.of(images, name), splits=lambda: splits)


def read_statistics(path: Path) -> Statistics | None:
    """mu and sigma of an .npz; None for one that has images instead. Raises DataError."""
    arrays = load_arrays(path, ("arr_0", *STATISTICS_KEYS))
    if "arr_0" in arrays:
        return None
    missing = [key for key in STATISTICS_KEYS if key not in arrays]
    if missing:
        raise DataError(f"{path} has no array {missing[0]} (and no images arr_0); give mu (D,) and sigma (D, D)")
    mu, sigma = (np.asarray(arrays[key], dtype=np.float64) for key in STATISTICS_KEYS)
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise DataError(f"{path}: mu is {mu.shape}, sigma {sigma.shape}; give finite mu (D,) and sigma (D, D)")
    return Statistics(mu, sigma)
