"""From options to splits: the built-in data sets, and a user's class folders.

Two data sets need no download: scikit-learn's 8x8 digits, and the same digits at random positions on a 12x12 canvas.
On 8x8 the class-Gaussian prior is nearly the data itself. On the canvas it is a blur, so what the model adds is seen.

A user's images and their classes are read by `collection`. Splits that they do not have are split off.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from rjem_cli.config.training import DataOptions
from rjem_cli.engine.callbacks import Log, OnProgress, noop
from rjem_cli.engine.data.collection import ImageCollection, read_collection_cached
from rjem_cli.engine.data.decode import resize_pixels
from rjem_cli.engine.data.downloads import load_published
from rjem_cli.engine.data.images import SPLIT_SEED, ImageSet, Splits, build_splits, concatenate, hash_images
from rjem_cli.errors import DataError

CANVAS = 12  # pixels
SCIKIT_LEARN_SIDES = {"digits": 8, "shifted-digits": CANVAS}
PLACEMENTS = 16  # of each digit, drawn after the split, so that no digit is in two splits
CLASS_NAMES = tuple(str(digit) for digit in range(10))


def load_digits() -> ImageSet:
    """1,797 images, 1x8x8; scikit-learn's 17 grey levels stretched to 0..255."""
    from sklearn.datasets import load_digits as load

    digits = load()
    pixels = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8)
    return ImageSet(pixels[:, None], torch.from_numpy(digits.target).long(), CLASS_NAMES)


def load_digit_splits(val_fraction: float, *, shifted: bool) -> Splits:
    """`digits`, or with `shifted` the data set `shifted-digits`."""
    splits = build_splits("digits", load_digits(), None, val_fraction)
    if not shifted:
        return splits
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    train, val, test = (place_on_canvas(part, generator) for part in splits.parts)
    return Splits("shifted-digits", train, val, test)


def place_on_canvas(digits: ImageSet, generator: torch.Generator) -> ImageSet:
    """Each digit PLACEMENTS times, at different random positions on a black 12x12 canvas."""
    count, channels, side, _ = digits.pixels.shape
    corners_per_side = CANVAS - side + 1
    corners = torch.rand(count, corners_per_side**2, generator=generator).argsort(dim=1)[:, :PLACEMENTS].flatten()
    source = torch.arange(count).repeat_interleave(PLACEMENTS)
    canvas = torch.zeros(len(source), channels, CANVAS, CANVAS, dtype=torch.uint8)
    rows = (corners // corners_per_side)[:, None] + torch.arange(side)
    columns = (corners % corners_per_side)[:, None] + torch.arange(side)
    canvas[torch.arange(len(source))[:, None, None], 0, rows[:, :, None], columns[:, None, :]] = digits.pixels[
        source, 0
    ]
    return ImageSet(canvas, digits.labels[source], digits.class_names)


class Part(NamedTuple):
    """One split of a data set, or all of it. `read_summary`: what was read of a user's images."""

    name: str
    images: ImageSet
    read_summary: str = ""


def load_splits(options: DataOptions, on_progress: OnProgress = noop, warn: Log = noop) -> Splits:
    """The data set that `options` name. `on_progress` reports a download, `warn` one that cannot be saved. Raises
    AbsentError or DataError with the file's name."""
    if options.data:
        return build_user_splits(read_collection_cached(options.data, options.image_size), options)
    if options.dataset in SCIKIT_LEARN_SIDES:
        splits = load_digit_splits(options.val_fraction, shifted=options.dataset == "shifted-digits")
        train, val, test = (resize(part, options.image_size) for part in splits.parts)
        return Splits(splits.name, train, val, test)
    train, test = (resize(part, options.image_size) for part in load_published(options.dataset, on_progress, warn))
    return build_splits(options.dataset, train, test, options.val_fraction)


def resize(images: ImageSet, size: int | None) -> ImageSet:
    return replace(images, pixels=resize_pixels(images.pixels, size))


def load_part(options: DataOptions, split: str) -> Part:
    """One split, or with "all" every image. User images without a training part are a test set: the part of that
    name, else test or val. Raises AbsentError or DataError."""
    if options.data:
        collection, name = read_collection_cached(options.data, options.image_size), Path(options.data).name
        parts = collection.group_by_split()
        if split == "all" and not options.test_data:
            return Part(f"{name}:all", concatenate(list(parts.values())), collection.read_summary)
        if "train" not in parts:
            part = split if split in parts else "test" if "test" in parts else "val"
            return Part(f"{name}:{part}", parts[part], collection.read_summary)
        splits = build_user_splits(collection, options)
    else:
        splits = load_splits(options)
    by_name = dict(zip(("train", "val", "test"), splits.parts))
    images = concatenate(list(by_name.values())) if split == "all" else by_name[split]
    return Part(f"{splits.name}:{split}", images, splits.read_summary)


def build_user_splits(collection: ImageCollection, options: DataOptions) -> Splits:
    """The splits of `collection`, the images of `options.data`. Those that folders or a table name stay; others are
    split off with a fixed seed. Raises DataError."""
    data, test_data = str(options.data), options.test_data
    parts, summary = collection.group_by_split(), collection.read_summary
    if "train" not in parts:
        raise DataError(
            f"{data} has no training images, only {', '.join(parts)}; give training images as --data, and this one as "
            "--test-data"
        )
    train, test = parts["train"], parts.get("test")
    if test_data:
        tested = read_collection_cached(test_data, options.image_size)
        test, summary = select_test_images(tested), f"{summary}; {tested.read_summary}"
        check_compatible(train, test, data, test_data)
        test = order_classes(test, train.class_names)
    splits = build_splits(Path(data).name, train, test, 0 if "val" in parts else options.val_fraction)
    splits = replace(splits, val=parts["val"]) if "val" in parts else splits
    return replace(splits, read_summary="; ".join([summary, *find_overlaps(splits)]))


def select_test_images(collection: ImageCollection) -> ImageSet:
    """The part for tests of --test-data: test, or else val, or else all images if no folder names a split. Raises
    DataError for training images."""
    parts = collection.group_by_split()
    found = parts.get("test") or parts.get("val")
    if found is None and collection.has_splits:
        raise DataError(f"{collection.name} has training images only; give test images as --test-data")
    return found or parts["train"]


def find_overlaps(splits: Splits) -> list[str]:
    """One sentence for val and one for test, if they contain training images."""
    known = set(hash_images(splits.train.pixels))
    counts = {
        name: sum(digest in known for digest in hash_images(part.pixels))
        for name, part in (("val", splits.val), ("test", splits.test))
    }
    return [f"training images that are also in {name}: {count}" for name, count in counts.items() if count]


def order_classes(images: ImageSet, class_names: tuple[str, ...]) -> ImageSet:
    """The images with the same classes in another order."""
    positions = torch.tensor([class_names.index(name) for name in images.class_names])
    return ImageSet(images.pixels, positions[images.labels], class_names)


def check_compatible(train: ImageSet, test: ImageSet, train_name: str, test_name: str) -> None:
    if train.image_shape != test.image_shape:
        raise DataError(
            f"images of {test_name} are {test.image_shape} (C, H, W), those of {train_name} {train.image_shape}; "
            "convert one of them"
        )
    if {*train.class_names} != {*test.class_names}:
        different = sorted(set(train.class_names) ^ set(test.class_names))
        raise DataError(f"{train_name} and {test_name} have different classes: {', '.join(different[:5])}")
