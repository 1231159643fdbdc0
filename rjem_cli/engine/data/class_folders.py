"""A user's own images: a tree of class folders, or the same in a .zip or .tar file, read as it is.

An image's class is the name of the folder it lies in. Folders named train, val and test above the classes are taken
as splits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from rjem_cli.engine.data.archives import OVERVIEWS, is_image, read_members, readable
from rjem_cli.engine.data.decode import decode, decode_all, stacked
from rjem_cli.engine.data.images import ImageSet
from rjem_cli.errors import AbsentError, DataError

SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def read_class_folders(location: str) -> dict[str, ImageSet]:
    """Images by split name ("train" where the tree names none), all with one list of class names, sorted.

    Raises AbsentError if `location` is not there or holds no image, DataError for one that is corrupt, odd-sized or in
    no class folder (with its name).
    """
    path = readable(location)
    if path.is_dir():
        return read_tree(path, location)
    at = path.stat()
    return dict(read_archive(path.resolve(), location, at.st_mtime_ns, at.st_size))


@functools.lru_cache(maxsize=2)
def read_archive(path: Path, location: str, mtime_ns: int, size: int) -> dict[str, ImageSet]:
    """Once in a process, training and test images: a comparison asks for them with each of its rows."""
    return read_tree(path, location)


def read_tree(path: Path, location: str) -> dict[str, ImageSet]:
    found = decode_all(read_members(path), location)
    if not found.names:
        raise AbsentError(
            f"{location} holds no images; give a folder (or archive) of class folders, such as cats/1.png dogs/1.png"
        )
    return by_split(
        [split_of(name) for name in found.names], [class_of(name) for name in found.names], stacked(found.arrays)
    )


def by_split(
    splits: Sequence[str], classes: Sequence[str], pixels: Tensor, class_names: tuple[str, ...] = ()
) -> dict[str, ImageSet]:
    """From the split and the class of each of `pixels` (N, C, H, W); classes are numbered as `class_names` has them,
    else by their names."""
    class_names = class_names or tuple(sorted(set(classes)))
    number = {class_name: index for index, class_name in enumerate(class_names)}
    labels = torch.tensor([number[class_name] for class_name in classes])
    sets = {}
    for split in sorted(set(splits)):
        members = torch.tensor([index for index, its_split in enumerate(splits) if its_split == split])
        sets[split] = ImageSet(pixels[members], labels[members], class_names)
    return sets


def read_images(location: str, image_shape: tuple[int, int, int]) -> torch.Tensor:
    """Every image of a folder or archive, or one image file, whatever its folder is called, sorted by name: uint8
    (N, C, H, W). Raises AbsentError, and DataError for an image that is corrupt or not of `image_shape` (C, H, W)."""
    path = readable(location)
    is_single = path.is_file() and is_image(PurePosixPath(path.name))
    try:
        members = [(path.name, path.read_bytes())] if is_single else sorted(read_members(path))
        members = [(name, content) for name, content in members if PurePosixPath(name).name not in OVERVIEWS]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    if not members:
        raise AbsentError(f"{location} holds no images; give PNG files, a folder of them or an archive")
    channels, height, width = image_shape
    arrays = []
    for name, content in members:
        array = decode(content, f"{location}: {name}")
        if channels == 1 and array.ndim == 3 and (array == array[..., :1]).all():
            array = array[..., 0]  # grey, though stored with a palette or in three channels
        if array.shape[:2] != (height, width) or (array.ndim == 3 and channels == 1):
            found = f"{array.shape[1]}x{array.shape[0]}, {'colour' if array.ndim == 3 else 'grey'}"
            wanted = f"{width}x{height}, {'colour' if channels == 3 else 'grey'}"
            raise DataError(f"{location}: {name} is {found}; this checkpoint takes {wanted} images")
        arrays.append(array if array.ndim == 3 else np.repeat(array[..., None], channels, axis=2))
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def split_of(name: str) -> str:
    """`cifar10/train/cat/0000.jpg` -> "train", and so without any such folder."""
    return next(
        (SPLIT_NAMES[part.lower()] for part in folders_of(name)[-2::-1] if part.lower() in SPLIT_NAMES), "train"
    )


def class_of(name: str) -> str:
    """`cifar10/train/cat/0000.jpg` -> "cat". An image outside of any class folder raises DataError."""
    folders = folders_of(name)
    if not folders or folders[-1].lower() in SPLIT_NAMES:
        raise DataError(f"{name} lies in no class folder; give a tree such as cats/1.png dogs/1.png")
    return folders[-1]


def folders_of(name: str) -> tuple[str, ...]:
    return PurePosixPath(name).parts[:-1]
