"""What samples are compared with: part of a built-in data set, a set of images, or statistics of features."""

import contextlib
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rjem_cli.config.common import DATASETS, LARGEST_SIDE
from rjem_cli.config.training import DataOptions
from rjem_cli.engine.data.collection import ImageCollection, get_nested, read_collection_cached
from rjem_cli.engine.data.images import Splits, concatenate
from rjem_cli.engine.data.load import build_user_splits, load_splits
from rjem_cli.engine.data.npz import load_arrays, read_array_names
from rjem_cli.errors import AbsentError, ConfigError, DataError, did_you_mean
from rjem_cli.paths import expand, is_dataset_or_part, parse_part

CIFAR_SHAPE = (3, 32, 32)
LARGEST_STATISTIC = 1e12  # beyond this an .npz does not hold statistics of features
STATISTICS_KEYS = ("mu", "sigma")  # as in the files of pytorch-fid, TTUR, EDM and ADM
IMAGES_KEY = "arr_0"


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and covariance (D, D) of features, float64. `protocol`: how rjem made them; empty if another program
    did."""

    mu: np.ndarray
    sigma: np.ndarray
    protocol: dict[str, Any] = field(default_factory=dict)

    @property
    def features(self) -> dict[str, Any]:
        """The network, its weights and the resize; empty if they are unknown."""
        found = self.protocol.get("features")
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Reference:
    """`images`, `statistics`, or both: ADM's files hold the statistics of a data set and some of its images.
    `load_splits` returns the data set that a judge can be trained on; it raises DataError for images without
    classes."""

    name: str
    images: ImageCollection | None = None
    statistics: Statistics | None = None
    load_splits: Callable[[], Splits] | None = None


def recorded_size(samples: ImageCollection) -> int | None:
    """The --image-size of the training, from the samples' meta.json."""
    size = get_nested(samples.meta, "dataset.image_size")
    return size if type(size) is int and 0 < size <= LARGEST_SIDE else None


def default_reference(samples: ImageCollection, protocol: str) -> tuple[str, str | None]:
    """(name for `read_reference`, test images) of what the samples' meta.json says the model was trained on. Samples
    that are part of a data set are compared with that; 32x32 colour images without a meta.json with cifar10. Raises
    DataError if no reference can be inferred."""
    part = "all" if protocol == "jempp" else "train"
    if is_dataset_or_part(samples.name):
        name = parse_part(samples.name)[0]
        return name if name in DATASETS else f"{name}:{part}", None
    dataset: Any = (samples.meta or {}).get("dataset")
    dataset = dataset if isinstance(dataset, dict) else {}
    if dataset.get("data"):
        return f"{dataset['data']}:{part}", dataset.get("test_data")
    name = dataset.get("name")
    if isinstance(name, str) and name not in DATASETS:
        raise AbsentError(
            f"the location of {name}, which made these samples, is unknown; give it with --reference PATH"
        )
    if name is None and samples.image_shape != CIFAR_SHAPE:
        raise DataError(f"{samples.name} does not name its data set; give one with --reference, such as digits:train")
    if name is not None and not isinstance(name, str):
        raise DataError(f"the samples' meta.json has an invalid data set name {name!r}; give one with --reference")
    return name or "cifar10", dataset.get("test_data")


def read_reference(text: str, protocol: str, test_data: str | None = None, image_size: int | None = None) -> Reference:
    """Read, and resize if `image_size` is given, `cifar10:test`; `cifar10` (its training part); a path or `path:test`;
    or statistics.npz. With the protocol jempp, a data set means all its images. Raises ConfigError for an unknown name
    or a part that contradicts the protocol, AbsentError if nothing is there, DataError if it cannot be used."""
    name, part = parse_part(text)
    if protocol == "jempp":
        if part in ("train", "test"):
            raise ConfigError(f"--protocol jempp compares with train and test images; use --reference {name}")
        part = "all"
    if name in DATASETS:
        splits = load_splits(DataOptions(dataset=name, val_fraction=0.0, image_size=image_size))
        return select_part(f"{name}:{part or 'train'}", splits, part or "train")
    path = expand(name)
    if not path.exists():
        if "/" in name or path.suffix:
            raise AbsentError(f"--reference {text}: no such file or folder")
        raise ConfigError(f"--reference {text!r} is not a data set or a file; {did_you_mean(name, DATASETS)}")
    statistics = read_statistics(path) if path.suffix.lower() == ".npz" else None
    if statistics is not None and part in ("train", "test"):
        raise ConfigError(f"--reference {text}: statistics have no parts; give {name}")
    if statistics is not None and protocol == "jempp":
        raise ConfigError(f"--protocol jempp compares with train and test images, but {text} holds statistics")
    if statistics is not None and IMAGES_KEY not in read_array_names(path):
        return Reference(text, statistics=statistics)
    images = read_collection_cached(name, image_size)

    @functools.cache  # building them hashes every image
    def make_splits() -> Splits:
        options = DataOptions(data=name, test_data=test_data, val_fraction=0.0, image_size=image_size)
        return build_user_splits(images, options)

    if statistics is not None or (part in ("", "all") and test_data is None):
        return Reference(text, images, statistics, make_splits)
    return select_part(f"{name}:{part}", make_splits(), part)


def select_part(name: str, splits: Splits, part: str) -> Reference:
    selected = {"train": [splits.train], "test": [splits.test], "all": [splits.train, splits.test]}[part]
    images = replace(ImageCollection.from_images(concatenate(selected), name), read_summary=splits.read_summary)
    return Reference(name, images, load_splits=lambda: splits)


def read_statistics(path: Path) -> Statistics | None:
    """mu and sigma of an .npz; None if it holds only images. Raises DataError."""
    arrays = load_arrays(path, (*STATISTICS_KEYS, "protocol"))
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
    if max(abs(mu).max(), abs(sigma).max()) > LARGEST_STATISTIC:
        raise DataError(f"{path}: mu or sigma exceed {LARGEST_STATISTIC:g}; they are not statistics of features")
    if not np.allclose(sigma, sigma.T, rtol=1e-4, atol=1e-6) or (sigma.diagonal() < 0).any():
        raise DataError(f"{path}: sigma is not a covariance: it is not symmetric or has a negative variance")
    return Statistics(mu, sigma, parse_protocol(arrays.get("protocol")))


def parse_protocol(array: np.ndarray | None) -> dict[str, Any]:
    """The protocol of --save-stats; empty without one, or for another program's array of that name."""
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(str(array)) if array is not None and array.ndim == 0 else None
        return document if isinstance(document, dict) and "rjem" in document else {}
    return {}
