"""What samples are compared with: part of a built-in data set, any set of images, or statistics that somebody made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rjem_cli.config import DATASETS, DataOptions
from rjem_cli.engine.data.collection import ImageCollection, load_arrays, read_array_names, read_collection
from rjem_cli.engine.data.images import Splits, concatenate
from rjem_cli.engine.data.load import build_user_splits, load_splits
from rjem_cli.errors import AbsentError, ConfigError, DataError, did_you_mean
from rjem_cli.paths import expand

PARTS = ("train", "test", "all")
CIFAR_SHAPE = (3, 32, 32)
IMAGES_KEY = "arr_0"
LARGEST_STATISTIC = 1e12
STATISTICS_KEYS = ("mu", "sigma")  # of pytorch-fid, TTUR, EDM and ADM alike


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and covariance (D, D) of features, float64."""

    mu: np.ndarray
    sigma: np.ndarray


@dataclass(frozen=True)
class Reference:
    """`images`, `statistics`, or both: ADM's files have the statistics of a whole set, and some of its images. `splits`
    gives the data set that the images are from, for a judge to be trained on; it raises DataError for images without
    classes."""

    name: str
    images: ImageCollection | None = None
    statistics: Statistics | None = None
    splits: Callable[[], Splits] | None = None


def dataset_of(meta: dict[str, Any] | None) -> dict[str, Any]:
    """What samples' meta.json says of the data set; nothing where it says nothing."""
    dataset = (meta or {}).get("dataset")
    return dataset if isinstance(dataset, dict) else {}


def default_reference(samples: ImageCollection, protocol: str) -> str:
    """The training images that the samples' meta.json names, or those of the data set that they are part of, or with
    the protocol jempp all of them; else cifar10's, for images that look like them. Raises DataError."""
    if names_builtin(samples.name):
        return parts_of(samples.name)[0]
    dataset = dataset_of(samples.meta)
    if dataset.get("data"):
        return f"{dataset['data']}:{'all' if protocol == 'jempp' else 'train'}"
    name = dataset.get("name")
    if name is None and samples.image_shape != CIFAR_SHAPE:
        raise DataError(
            f"{samples.name} names no data set that it is like; say one with --reference, such as digits:train"
        )
    if name is not None and not isinstance(name, str):
        raise DataError(f"the samples' meta.json names no data set but {name!r}; say one with --reference")
    return name or "cifar10"


def own_test_data(meta: dict[str, Any] | None) -> str | None:
    return dataset_of(meta).get("test_data")


def parts_of(text: str) -> tuple[str, str]:
    """`cifar10:test` -> ("cifar10", "test"); the part is empty where none is named. Raises ConfigError for a part that
    a built-in data set does not have."""
    name, _, part = text.rpartition(":")
    if name in DATASETS and part not in PARTS:
        raise ConfigError(f"{text}: {name} has no part {part!r}; {did_you_mean(part, PARTS)}")
    return (name, part) if name and part in PARTS else (text, "")


def names_builtin(text: str) -> bool:
    return parts_of(text)[0] in DATASETS


def read_reference(text: str, protocol: str, test_data: str | None = None) -> Reference:
    """`cifar10:test`; `cifar10`, its training part, or with the protocol jempp all of it; a path or `path:test`;
    statistics.npz. Raises ConfigError for an unknown name or a part that the protocol does not go with, AbsentError for
    what is not there, DataError for what cannot be used."""
    name, part = parts_of(text)
    if protocol == "jempp":
        if part in ("train", "test"):
            raise ConfigError(f"--protocol jempp compares with train and test, {text} is one part; leave it out")
        part = "all"
    if name in DATASETS:
        splits = load_splits(DataOptions(dataset=name, val_fraction=0.0))
        return of_splits(f"{name}:{part or 'train'}", splits, part or "train")
    path = expand(name)
    if not path.exists():
        is_path = "/" in name or path.suffix
        hint = "give a path that is" if is_path else did_you_mean(name, DATASETS)
        raise (AbsentError if is_path else ConfigError)(f"--reference {text} is no data set and no file; {hint}")
    statistics = read_statistics(path) if path.suffix.lower() == ".npz" else None
    if statistics is not None and protocol == "jempp":
        raise ConfigError(f"--protocol jempp is of train and test images, and {text} is statistics")
    if statistics is not None and IMAGES_KEY not in read_array_names(path):
        return Reference(text, statistics=statistics)
    images = read_collection(name)

    def own() -> Splits:
        return build_user_splits(images.group_by_split(), name, test_data, val_fraction=0.0)

    if statistics is not None or (part in ("", "all") and test_data is None):
        return Reference(text, images, statistics, splits=own)
    return of_splits(f"{name}:{part}", own(), part)


def of_splits(name: str, splits: Splits, part: str) -> Reference:
    chosen = {"train": [splits.train], "test": [splits.test], "all": [splits.train, splits.test]}[part]
    return Reference(name, ImageCollection.from_images(concatenate(chosen), name), splits=lambda: splits)


def read_statistics(path: Path) -> Statistics | None:
    """mu and sigma of an .npz; None for one that has only images. Raises DataError."""
    arrays = load_arrays(path, STATISTICS_KEYS)
    missing = [key for key in STATISTICS_KEYS if key not in arrays]
    if missing and IMAGES_KEY in read_array_names(path):
        return None
    if missing:
        raise DataError(f"{path} has no array {missing[0]} (and no images arr_0); give mu (D,) and sigma (D, D)")
    if any(arrays[key].dtype.kind != "f" for key in STATISTICS_KEYS):
        raise DataError(f"{path}: mu and sigma are {arrays['mu'].dtype} and {arrays['sigma'].dtype}; give floats")
    mu, sigma = (np.asarray(arrays[key], dtype=np.float64) for key in STATISTICS_KEYS)
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise DataError(f"{path}: mu is {mu.shape}, sigma {sigma.shape}; give finite mu (D,) and sigma (D, D)")
    limit = LARGEST_STATISTIC
    if abs(mu).max() > limit or abs(sigma).max() > limit:
        raise DataError(f"{path}: mu or sigma are beyond {limit:g}; these are no statistics of features")
    if not np.allclose(sigma, sigma.T, rtol=1e-4, atol=1e-6) or (sigma.diagonal() < 0).any():
        raise DataError(f"{path}: sigma is no covariance: it is not symmetric, or has a negative variance")
    return Statistics(mu, sigma)
