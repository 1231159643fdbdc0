"""A user's own images: a tree of class folders, or the same in a .zip or .tar file, read as it is.

An image's class is the name of the folder it lies in. Folders named train, val and test above the classes are taken
as splits. Nothing is unpacked to disk: members are decoded in memory, links inside archives are passed over.
"""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from lzma import LZMAError
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from rjem_cli.engine.data.images import ImageSet
from rjem_cli.errors import AbsentError, DataError
from rjem_cli.paths import existing_data

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
LARGEST_FILE = 256 * 2**20  # bytes; anything larger is no training image
# Pictures that rjem leaves among samples, chains and attacked images, and that are none of them
OVERVIEWS = {"grid.png", "film.png", "chains.gif", "energies.png", "curve.png", "examples.png"}
GREY_MODES = {"1", "L", "LA"}


def read_class_folders(location: str) -> dict[str, ImageSet]:
    """Images by split name ("train" where the tree names none), all with one list of class names, sorted.

    Raises AbsentError if `location` is not there or holds no image, DataError for a corrupt or odd-sized one (with its
    name).
    """
    path = readable(location)
    arrays: list[np.ndarray] = []
    labels: list[tuple[str, str]] = []
    names: list[str] = []
    for name, content in read_members(path):
        split, class_name = split_and_class(name)
        array = decode(content, f"{location}: {name}")
        if arrays and array.shape[:2] != arrays[0].shape[:2]:
            found, wanted = (f"{a.shape[1]}x{a.shape[0]}" for a in (array, arrays[0]))
            raise DataError(
                f"{location}: {name} is {found}, the images before it are {wanted}; give images of one size"
            )
        arrays.append(array)
        labels.append((split, class_name))
        names.append(name)
    if not arrays:
        raise AbsentError(
            f"{location} holds no images; give a folder (or archive) of class folders, such as cats/1.png dogs/1.png"
        )
    # one order for folder, .zip and .tar, so that they give one split and one digest
    order = sorted(range(len(names)), key=names.__getitem__)
    return assemble([arrays[index] for index in order], [labels[index] for index in order])


def readable(location: str) -> Path:
    """Raises AbsentError for nothing there, DataError for a device or a pipe, which may never end."""
    path = existing_data(location)
    if not path.is_dir() and not path.is_file():
        raise DataError(f"{location} is neither a folder nor a file; give one of them")
    return path


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


def read_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every image file, in the order in which they lie there."""
    try:
        if path.is_dir():
            for file in files_below(path):
                name = PurePosixPath(file.relative_to(path).as_posix())
                if is_image(name) and file.is_file():
                    check_size(path, str(name), file.stat().st_size)
                    yield str(name), file.read_bytes()
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if is_image(PurePosixPath(info.filename)) and not info.is_dir():
                        check_size(path, info.filename, info.file_size)
                        yield info.filename, archive.read(info)
        else:
            check_tar_end(path)
            with tarfile.open(path, "r|*") as archive:
                for member in archive:
                    if is_image(PurePosixPath(member.name)) and member.isfile():
                        check_size(path, member.name, member.size)
                        content = archive.extractfile(member)
                        assert content is not None
                        yield member.name, content.read()
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        LZMAError,
        EOFError,
        zlib.error,
        RuntimeError,
        UnicodeError,
    ) as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} cannot be read as a .zip, .tar or .tar.xz ({reason}); is it whole?") from None
    except OSError as error:
        raise DataError(f"cannot read {error.filename or path}: {error.strerror or error}") from None


def files_below(path: Path) -> Iterator[Path]:
    """Every file, also behind links to folders, but each folder once: links may run in circles."""
    seen = set()
    for folder, below, names in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        yield from (Path(folder, name) for name in names)


def check_tar_end(path: Path) -> None:
    """A plain tar cut between two members reads without an error; only its missing end, two zero blocks, tells."""
    with path.open("rb") as file:
        plain = file.read(512)[257:262] == b"ustar"
        if plain and file.seek(0, 2) >= 1024:
            file.seek(-1024, 2)
            if any(file.read(1024)):
                raise tarfile.ReadError("the end of the archive is missing")


def is_image(name: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in name.parts)
    return name.suffix.lower() in IMAGE_SUFFIXES and not hidden


def check_size(path: Path, name: str, size: int) -> None:
    if size > LARGEST_FILE:
        raise DataError(f"{path}: {name} has {size} bytes, too many for a training image; remove it")


def split_and_class(name: str) -> tuple[str, str]:
    """`cifar10/train/cat/0000.jpg` -> ("train", "cat"). An image outside of any class folder raises DataError."""
    folders = PurePosixPath(name).parts[:-1]
    if not folders or folders[-1].lower() in SPLIT_NAMES:
        raise DataError(f"{name} lies in no class folder; give a tree such as cats/1.png dogs/1.png")
    split = next((SPLIT_NAMES[part.lower()] for part in reversed(folders[:-1]) if part.lower() in SPLIT_NAMES), "train")
    return split, folders[-1]


def decode(content: bytes, name: str) -> np.ndarray:
    """uint8 (H, W) for grey images, (H, W, 3) for all others. Raises DataError with the file's name."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode.startswith(("I", "F")):
                raise DataError(f"{name} has more than 8 bits a channel ({image.mode}); convert it to 8 bits")
            return np.asarray(image.convert("L" if image.mode in GREY_MODES else "RGB"))
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise many types on hostile bytes; all mean the same here
        reason = str(error).split(" <")[0] or type(error).__name__
        raise DataError(f"{name} is corrupt or no image ({reason}); remove or replace it") from None


def assemble(arrays: list[np.ndarray], labels: list[tuple[str, str]]) -> dict[str, ImageSet]:
    """Stack by split; grey images among coloured ones get three equal channels."""
    class_names = tuple(sorted({class_name for _, class_name in labels}))
    number = {class_name: index for index, class_name in enumerate(class_names)}
    if any(array.ndim == 3 for array in arrays):
        arrays = [array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2) for array in arrays]
    else:
        arrays = [array[..., None] for array in arrays]
    sets = {}
    for split in sorted({split for split, _ in labels}):
        members = [index for index, (its_split, _) in enumerate(labels) if its_split == split]
        pixels = torch.from_numpy(np.stack([arrays[index] for index in members])).permute(0, 3, 1, 2).contiguous()
        sets[split] = ImageSet(pixels, torch.tensor([number[labels[index][1]] for index in members]), class_names)
    return sets
