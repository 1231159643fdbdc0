"""From options to splits: the one door through which images come in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from rjem_cli.config import DataOptions
from rjem_cli.engine.callbacks import noop
from rjem_cli.engine.data.class_folders import read_class_folders
from rjem_cli.engine.data.digits import digit_splits
from rjem_cli.engine.data.downloads import read_downloaded
from rjem_cli.engine.data.fetch import Report, Tell
from rjem_cli.engine.data.images import ImageSet, Splits, make_splits
from rjem_cli.errors import DataError


def load_splits(options: DataOptions, report: Report = noop, tell: Tell = noop) -> Splits:
    """The data set that `options` names; `report` hears of a download, `tell` of one that cannot be kept. Raises
    AbsentError or DataError, with the file's name."""
    if options.data:
        return load_own_images(options.data, options.test_data, options.val_fraction)
    if options.dataset in ("digits", "shifted-digits"):
        return digit_splits(options.val_fraction, shifted=options.dataset == "shifted-digits")
    train, test = read_downloaded(options.dataset, report, tell)
    return make_splits(options.dataset, train, test, options.val_fraction)


def load_own_images(data: str, test_data: str | None, val_fraction: float) -> Splits:
    """Splits that the tree names are kept; the others are split off with a fixed seed."""
    return own_splits(read_class_folders(data), data, test_data, val_fraction)


def own_splits(parts: dict[str, ImageSet], data: str, test_data: str | None, val_fraction: float) -> Splits:
    name = Path(data).name
    if "train" not in parts:
        raise DataError(
            f"{data} has no training images, only {', '.join(parts)}; "
            "give a place that has some, and this one as --test-data"
        )
    train, test = parts["train"], parts.get("test")
    if test_data:
        test = join(read_class_folders(test_data))
        check_alike(train, test, data, test_data)
    if "val" not in parts:
        return make_splits(name, train, test, val_fraction)
    splits = make_splits(name, train, test, val_fraction=0)
    return replace(splits, val=parts["val"])


def load_part(options: DataOptions, split: str) -> tuple[str, ImageSet]:
    """(name, images) of one split, or of "all". Images of a user's without a training part are a test set: the part
    that is called so, or the only one. Raises AbsentError or DataError."""
    if not options.data:
        splits = load_splits(options)
    else:
        parts, name = read_class_folders(options.data), Path(options.data).name
        if split == "all" and not options.test_data:
            return f"{name}:all", concatenated(list(parts.values()))
        if "train" not in parts:
            part = split if split in parts else next(iter(parts))
            return f"{name}:{part}", parts[part]
        splits = own_splits(parts, options.data, options.test_data, options.val_fraction)
    by_name = {"train": splits.train, "val": splits.val, "test": splits.test}
    return f"{splits.name}:{split}", concatenated(list(by_name.values())) if split == "all" else by_name[split]


def concatenated(parts: list[ImageSet]) -> ImageSet:
    return ImageSet(
        torch.cat([part.pixels for part in parts]), torch.cat([part.labels for part in parts]), parts[0].class_names
    )


def join(parts: dict[str, ImageSet]) -> ImageSet:
    """A test archive is test data whatever its folders are called; one that has a part named test is that part."""
    return parts["test"] if "test" in parts else next(iter(parts.values()))


def check_alike(train: ImageSet, test: ImageSet, train_name: str, test_name: str) -> None:
    if train.image_shape != test.image_shape:
        raise DataError(
            f"images of {test_name} are {test.image_shape} (C, H, W), "
            f"those of {train_name} {train.image_shape}; make them alike"
        )
    if train.class_names != test.class_names:
        different = sorted(set(train.class_names) ^ set(test.class_names))
        raise DataError(f"{train_name} and {test_name} differ in classes: {', '.join(different[:5])}; make them alike")
