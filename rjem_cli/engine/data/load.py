"""From options to splits: the built-in data sets, and a user's class folders.

Two data sets need no download: scikit-learn's 8x8 digits, and the same digits at random positions on a 12x12 canvas.
On 8x8 the class-Gaussian prior is nearly the data itself. On the canvas it is a blur, so what the model adds is seen.

A user's images lie in a tree of class folders, or in a .zip or .tar with such a tree. The class of an image is the name
of its folder; folders named train, val or test above it are splits. In samples of `rjem generate`, labels.csv gives the
classes.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from rjem_cli.config.training import DataOptions
from rjem_cli.engine.callbacks import Log, OnProgress, noop
from rjem_cli.engine.data.archives import (
    FIGURE_NAMES,
    Member,
    check_readable,
    decode_images,
    is_image,
    read_members,
    read_once,
    resize_pixels,
)
from rjem_cli.engine.data.downloads import load_published
from rjem_cli.engine.data.images import SPLIT_SEED, ImageSet, Splits, build_splits, concatenate
from rjem_cli.errors import DataError

SCIKIT_LEARN_SETS = ("digits", "shifted-digits")
CANVAS = 12  # pixels
PLACEMENTS = 16  # of each digit, drawn after the split, so that no digit is in two splits
LABELS_NAME = "labels.csv"
CLASS_NAMES = tuple(str(digit) for digit in range(10))
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


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
    parts = (place_on_canvas(part, generator) for part in splits.parts)
    return Splits("shifted-digits", *parts)


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


def load_splits(options: DataOptions, on_progress: OnProgress = noop, warn: Log = noop) -> Splits:
    """The data set that `options` name. `on_progress` reports a download, `warn` one that cannot be saved. Raises
    AbsentError or DataError with the file's name."""
    if options.data:
        return build_user_splits(read_class_folders(options.data, options.image_size), options)
    if options.dataset in SCIKIT_LEARN_SETS:
        splits = load_digit_splits(options.val_fraction, shifted=options.dataset == "shifted-digits")
        return Splits(splits.name, *(resize(part, options.image_size) for part in splits.parts))
    train, test = (resize(part, options.image_size) for part in load_published(options.dataset, on_progress, warn))
    return build_splits(options.dataset, train, test, options.val_fraction)


def resize(images: ImageSet, size: int | None) -> ImageSet:
    return replace(images, pixels=resize_pixels(images.pixels, size))


def load_part(options: DataOptions, split: str) -> tuple[str, ImageSet]:
    """(name, images) of one split, or of "all". User images without a training part are a test set: the part of that
    name, or the only one. Raises AbsentError or DataError."""
    if options.data:
        parts, name = read_class_folders(options.data, options.image_size), Path(options.data).name
        if split == "all" and not options.test_data:
            return f"{name}:all", concatenate(list(parts.values()))
        if "train" not in parts:
            part = split if split in parts else next(iter(parts))
            return f"{name}:{part}", parts[part]
        splits = build_user_splits(parts, options)
    else:
        splits = load_splits(options)
    by_name = {"train": splits.train, "val": splits.val, "test": splits.test}
    return f"{splits.name}:{split}", concatenate(list(by_name.values())) if split == "all" else by_name[split]


def build_user_splits(parts: dict[str, ImageSet], options: DataOptions) -> Splits:
    """Splits of `options.data`. Those named in `parts` stay; others are split off with a fixed seed. Raises
    DataError."""
    data, test_data = str(options.data), options.test_data
    if "train" not in parts:
        raise DataError(f"{data} has no training images, only {', '.join(parts)}; give some, and this as --test-data")
    train, test = parts["train"], parts.get("test")
    if test_data:
        test_parts = read_class_folders(test_data, options.image_size)
        test = test_parts["test"] if "test" in test_parts else next(iter(test_parts.values()))
        check_compatible(train, test, data, test_data)
    splits = build_splits(Path(data).name, train, test, 0 if "val" in parts else options.val_fraction)
    return replace(splits, val=parts["val"]) if "val" in parts else splits


def check_compatible(train: ImageSet, test: ImageSet, train_name: str, test_name: str) -> None:
    if train.image_shape != test.image_shape:
        raise DataError(
            f"images of {test_name} are {test.image_shape} (C, H, W), those of {train_name} {train.image_shape}; "
            "convert one of them"
        )
    if train.class_names != test.class_names:
        different = sorted(set(train.class_names) ^ set(test.class_names))
        raise DataError(f"{train_name} and {test_name} have different classes: {', '.join(different[:5])}")


def read_class_folders(location: str, image_size: int | None = None) -> dict[str, ImageSet]:
    """Images by split ("train" without split folders). All splits have the same class names, sorted. Raises
    AbsentError if `location` is missing or holds no image, DataError for an image that is corrupt, has another size
    than the others or lies in no class folder."""
    return dict(read_parts(location, image_size))


@read_once
def read_parts(location: str, image_size: int | None) -> dict[str, ImageSet]:
    return read_tree(check_readable(location), location, image_size)


def read_tree(path: Path, location: str, image_size: int | None) -> dict[str, ImageSet]:
    hint = "give a folder (or archive) of class folders, such as cats/1.png dogs/1.png"
    classes: dict[PurePosixPath, str] = {}  # of the files in tables
    figures: list[Member] = []  # that rjem wrote beside a table
    folders: set[PurePosixPath] = set()  # with a table

    def images() -> Iterator[Member]:
        for name, content in read_members(path, lambda name: is_image(name) or name.name == LABELS_NAME):
            file = PurePosixPath(name)
            if file.name == LABELS_NAME:
                classes.update(read_label_table(file, content))
                folders.add(file.parent)
            elif file.name in FIGURE_NAMES:
                figures.append((name, content))
            else:
                yield name, content
        yield from (figure for figure in figures if PurePosixPath(figure[0]).parent not in folders)

    names, pixels = decode_images(images(), location, hint, image_size)
    files = [with_class_folder(PurePosixPath(name), classes) for name in names]
    return group_by_split(list(map(parse_split, files)), list(map(parse_class_folder, files)), pixels)


def with_class_folder(file: PurePosixPath, classes: Mapping[PurePosixPath, str]) -> str:
    """`samples/0.png` -> `samples/cat/0.png` for a file with a class in a table; other names stay."""
    return str(file.parent / classes[file] / file.name if file in classes else file)


def read_label_table(path: PurePosixPath, content: bytes) -> dict[PurePosixPath, str]:
    """The class of each file in labels.csv of `rjem generate`; none in another program's table."""
    rows = csv.DictReader(content.decode("utf-8", errors="surrogateescape").splitlines())
    try:
        return {path.parent / row["file"]: row["class"] for row in rows if row.get("label") != "-1"}
    except (csv.Error, KeyError, TypeError):
        return {}


def group_by_split(
    splits: Sequence[str], classes: Sequence[str], pixels: Tensor, class_names: tuple[str, ...] = ()
) -> dict[str, ImageSet]:
    """Image sets from the split and the class of each image. Without `class_names`, classes are sorted by name."""
    class_names = class_names or tuple(sorted(set(classes)))
    index = {class_name: label for label, class_name in enumerate(class_names)}
    labels = torch.tensor([index[class_name] for class_name in classes])
    sets = {}
    for split in sorted(set(splits)):
        members = torch.tensor([row for row, name in enumerate(splits) if name == split])
        sets[split] = ImageSet(pixels[members], labels[members], class_names)
    return sets


def parse_split(name: str) -> str:
    """`cifar10/train/cat/0000.jpg` -> "train"; "train" for names without a split folder."""
    folders = PurePosixPath(name).parts[-3::-1]  # above the class folder, the innermost first
    return next((SPLIT_NAMES[folder.lower()] for folder in folders if folder.lower() in SPLIT_NAMES), "train")


def parse_class_folder(name: str) -> str:
    """`cifar10/train/cat/0000.jpg` -> "cat". Raises DataError for an image outside of class folders."""
    folders = PurePosixPath(name).parts[:-1]
    if not folders or folders[-1].lower() in SPLIT_NAMES:
        raise DataError(f"{name} lies in no class folder; give a tree such as cats/1.png dogs/1.png")
    return folders[-1]
