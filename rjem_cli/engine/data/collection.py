"""Sets of images from any source: a folder (flat, or one folder per class), an archive, an .npz, a tar stream.

Labels come from rjem's labels.csv, from WebDataset's .cls members, from the `labels` of an .npz, or from folder names.
rjem's meta.json, which describes how samples were made, is read too.
"""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from rjem_cli.engine.data import archives
from rjem_cli.engine.data.images import ImageSet, convert_channels, pixels_digest, spread_indices
from rjem_cli.engine.data.load import LABELS_NAME, group_by_split, parse_split, read_label_table
from rjem_cli.errors import AbsentError, ConfigError, DataError, summarize

META_NAMES = {"meta.json", "__meta.json__"}
# What is equal in the meta.json of all shards of one `rjem generate`
CALL_KEYS = "checkpoint_sha256 dataset.train_digest plan init init_sha256 classes seed block_size".split()
NUMBERED_FOLDER = re.compile(r"(.*/)?(?P<folder>\d{5,12})/(img)?(?P<number>\d{5,12})\.\w+")
HINT = "give PNG files, class folders of them, an archive or an .npz"

Labels = tuple[str, ...] | tuple[int, ...]  # class names or numbers


@dataclass(frozen=True)
class ImageCollection:
    """pixels: uint8 (N, C, H, W), C 1 or 3. labels: (N,), None if an image has none. meta: rjem's description of its
    samples. file_names: (N,) or empty. ordered_classes: class names by number, if the data set has them."""

    name: str
    pixels: Tensor
    labels: Labels | None = None
    meta: dict[str, Any] | None = None
    file_names: tuple[str, ...] = ()
    ordered_classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    @classmethod
    def from_images(cls, images: ImageSet, name: str) -> "ImageCollection":
        labels = tuple(images.class_names[label] for label in images.labels.tolist())
        return cls(name, images.pixels, labels, ordered_classes=images.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """By class number; empty without labels."""
        if self.ordered_classes or not self.labels:
            return self.ordered_classes
        if isinstance(self.labels[0], int):
            return tuple(str(number) for number in range(max(map(int, self.labels)) + 1))
        return tuple(sorted(set(map(str, self.labels))))

    def spread(self, count: int | None) -> "ImageCollection":
        """`count` images spread evenly, so that no class is left out; None gives all. Raises DataError if there are
        fewer."""
        if count is None:
            return self
        if count > len(self):
            raise DataError(f"{self.name} has {len(self)} images, fewer than --num {count}")
        indices = spread_indices(len(self), count).tolist()
        labels = None if self.labels is None else tuple(self.labels[index] for index in indices)
        names = tuple(self.file_names[index] for index in indices) if self.file_names else ()
        return replace(self, pixels=self.pixels[indices], labels=labels, file_names=names)

    def digest(self) -> str:
        return pixels_digest(self.pixels)

    def class_indices(self, class_names: Sequence[str]) -> Tensor | None:
        """Labels (N,) as indices into `class_names`; None if an image has no label or one of another class."""
        if self.labels is None:
            return None
        index: dict[str | int, int] = {name: label for label, name in enumerate(class_names)}
        index |= {label: label for label in range(len(class_names))}
        indices = [index.get(label, -1) for label in self.labels]
        return None if -1 in indices else torch.tensor(indices)

    def group_by_split(self) -> dict[str, ImageSet]:
        """Image sets by the split folders in the file names, "train" without them. Raises DataError without labels."""
        if self.labels is None:
            raise DataError(f"{self.name} has no classes; give class folders, such as cats/1.png dogs/1.png")
        splits = [parse_split(name) for name in self.file_names or [""] * len(self)]
        return group_by_split(splits, list(map(str, self.labels)), self.pixels, self.class_names)


def merge_collections(parts: Sequence[ImageCollection]) -> ImageCollection:
    """Shards of one set of samples, in this order. Raises DataError if they differ in image size, come from different
    calls by their meta.json, or contain the same samples."""
    first = parts[0]
    if len(parts) == 1:
        return first
    seen: dict[str, str] = {}
    for part in parts:
        if part.image_shape != first.image_shape:
            raise DataError(
                f"images of {part.name} are {part.image_shape} (C, H, W), those of {first.name} {first.image_shape}; "
                "give images of one size"
            )
        if (digest := part.digest()) in seen:
            raise DataError(f"{part.name} has the images of {seen[digest]}; give each part once")
        seen[digest] = part.name
    return ImageCollection(
        ", ".join(part.name for part in parts),
        torch.cat([part.pixels for part in parts]),
        complete_labels([label for part in parts for label in part.labels or [None]]),
        merge_meta(parts),
    )


def merge_meta(parts: Sequence[ImageCollection]) -> dict[str, Any] | None:
    """What the meta.json of all parts have in common; None if none has any. Raises DataError for different calls."""
    first = parts[0]
    ranges: list[range] = []
    for part in parts:
        if (part.meta is None) != (first.meta is None):
            bare, described = (part, first) if part.meta is None else (first, part)
            raise DataError(f"{bare.name} has no meta.json of rjem, but {described.name} does; score them separately")
        for key in CALL_KEYS:
            if get_nested(part.meta, key) != get_nested(first.meta, key):
                raise DataError(f"{part.name} and {first.name} differ in {key}; give the shards of one call")
        begin, end = parse_sample_range(part.meta)
        for earlier in ranges:
            if (sample := max(begin, earlier.start)) < min(end, earlier.stop):
                raise DataError(f"{part.name} contains sample {sample}, as does an earlier part; give each part once")
        ranges.append(range(begin, end))
    if first.meta is None:
        return None
    common = {key: value for key, value in first.meta.items() if key not in ("samples", "shard", "request")}
    return {**common, "complete": all((part.meta or {}).get("complete") is not False for part in parts)}


def parse_sample_range(meta: dict[str, Any] | None) -> tuple[int, int]:
    """(first sample, last + 1) of a shard; (0, 0) if meta.json does not say."""
    match get_nested(meta, "samples"):
        case [int(begin), int(end)]:
            return begin, end
    return 0, 0


def get_nested(meta: dict[str, Any] | None, key: str) -> Any:
    """The value of a key such as `outer.inner`, or None."""
    value: Any = meta
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def read_collection(location: str, image_size: int | None = None) -> ImageCollection:
    """The images of a folder, a .zip, a tar or an .npz, sorted by name, resized if `image_size` is given. Raises
    AbsentError if `location` does not exist or holds no images, and DataError, which names the file, for an unreadable
    image and for images of different sizes."""
    path = archives.check_readable(location)
    if path.is_file() and path.suffix.lower() == ".npz":
        return read_npz(path, image_size)
    if path.is_file() and archives.is_image(PurePosixPath(path.name)):
        raise ConfigError(f"{location} is a single image; give a folder of images, an archive or an .npz")
    return collect_members(archives.read_members(path, is_wanted), location, image_size)


def read_images(location: str, image_shape: tuple[int, int, int], image_size: int | None = None) -> Tensor:
    """The images of `read_collection`, or of one image file, in the shape (C, H, W) of a checkpoint: uint8
    (N, C, H, W). Raises AbsentError, and DataError for images of another size, or with colour where C is 1."""
    path = archives.check_readable(location)
    if path.is_file() and archives.is_image(PurePosixPath(path.name)):
        with archives.archive_errors(location):
            archives.check_size(location, path.name, path.stat().st_size)
            collection = collect_members([(path.name, path.read_bytes())], location, image_size)
    else:
        collection = read_collection(location, image_size)
    channels, height, width = image_shape
    _, own_height, own_width = collection.image_shape
    if (own_height, own_width) != (height, width):
        raise DataError(
            f"images of {location} are {own_width}x{own_height}; this checkpoint takes {width}x{height}"
            f"{suggest_size(image_shape)}"
        )
    return convert_channels(collection.pixels, channels, location).contiguous()


def suggest_size(image_shape: tuple[int, int, int]) -> str:
    """How to resize images for a checkpoint; empty if it does not take squares."""
    _, height, width = image_shape
    return f"; add --image-size {width}" if height == width else ""


def read_stream(stream: BinaryIO, name: str, image_size: int | None = None) -> ImageCollection:
    """The images of a tar stream, as `rjem generate -o -` writes it. Raises DataError for an incomplete one."""
    return collect_members(archives.read_tar_members(stream, name, is_wanted), name, image_size)


def is_wanted(name: PurePosixPath) -> bool:
    if name.name in archives.FIGURE_NAMES:
        return False
    return archives.is_image(name) or name.name in META_NAMES | {LABELS_NAME} or name.suffix == ".cls"


def collect_members(members: Iterable[archives.Member], location: str, image_size: int | None) -> ImageCollection:
    notes: dict[PurePosixPath, bytes] = {}  # labels and meta

    def images() -> Iterator[archives.Member]:
        for name, content in members:
            path = PurePosixPath(name)  # `./a.png` is `a.png`
            if archives.is_image(path):
                yield str(path), content
            else:
                notes[path] = content

    names, pixels = archives.decode_images(images(), location, HINT, image_size)
    meta_name = find_unique(notes, META_NAMES)
    meta = None if meta_name is None else parse_meta(notes[meta_name], f"{location}: {meta_name}")
    labels = find_labels([PurePosixPath(name) for name in names], notes)
    return ImageCollection(location, pixels, labels, meta, tuple(names))


def find_unique(paths: Iterable[PurePosixPath], names: set[str]) -> PurePosixPath | None:
    """The only file with one of these names, in any folder; None if there are several, of different sets."""
    matches = [path for path in paths if path.name in names]
    return matches[0] if len(matches) == 1 else None


def find_labels(names: Sequence[PurePosixPath], notes: dict[PurePosixPath, bytes]) -> Labels | None:
    """Class names from labels.csv, numbers from .cls members, or names of folders; None if an image has none."""
    table = find_unique(notes, {LABELS_NAME})
    if table is not None:
        classes = read_label_table(table, notes[table])
        return complete_labels([classes.get(name) for name in names])
    numbers = [notes.get(name.with_suffix(".cls"), b"").strip() for name in names]
    if any(numbers):
        return complete_labels([int(number) if number.isdigit() and len(number) < 10 else None for number in numbers])
    folders = [name.parts[-2] if len(name.parts) > 1 else None for name in names]
    if all(map(is_in_numbered_folder, names)) or len(set(folders) - {None}) < 2:
        return None
    return complete_labels(folders)


def is_in_numbered_folder(name: PurePosixPath) -> bool:
    """Whether the folder only cuts a long list into thousands, as in EDM's 001000/001234.png, 00001/img00001234.png."""
    match = NUMBERED_FOLDER.fullmatch(str(name))
    if match is None:
        return False
    folder, thousands = int(match["folder"]), int(match["number"]) // 1000
    return folder in (thousands, 1000 * thousands)


def complete_labels(labels: list[Any]) -> tuple[Any, ...] | None:
    return None if None in labels else tuple(labels)


def parse_meta(text: bytes | str, name: str) -> dict[str, Any] | None:
    """rjem's meta.json; None for another program's. Raises DataError for invalid JSON."""
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(f"{name} is not valid JSON; remove it, or export the samples again") from None
    return meta if isinstance(meta, dict) and "rjem" in meta else None


@contextlib.contextmanager
def open_npz(path: Path) -> Iterator[Any]:
    """An .npz whose arrays are read when they are accessed. Pickled objects are refused. Raises DataError."""
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("it is an .npy, one array without a name")
        with archive:
            yield archive
    except Exception as error:  # numpy parses headers as Python, and raises many types
        reason = "" if "pickle" in str(error).lower() else f" ({summarize(error)})"
        raise DataError(f"{path} is not a valid .npz, or contains pickled objects{reason}; export it again") from None


def load_arrays(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The arrays of these names that an .npz contains. Raises DataError."""
    with open_npz(path) as archive:
        return {name: archive[name] for name in names if name in archive}


def read_array_names(path: Path) -> set[str]:
    """The names in an .npz; the arrays are not read. Raises DataError."""
    with open_npz(path) as archive:
        return set(archive.files)


def read_npz(path: Path, image_size: int | None = None) -> ImageCollection:
    """arr_0, uint8 (N, H, W, C), as ADM and rjem write it, with `labels` (arr_1 in ADM's) and rjem's `meta` if
    present."""
    arrays = load_arrays(path, ("arr_0", "arr_1", "labels", "meta"))
    pixels = arrays.get("arr_0")
    if pixels is None:
        raise DataError(f"{path} has no array arr_0; give samples as arr_0, uint8 (N, H, W, C)")
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3) or 0 in pixels.shape[1:]:
        raise DataError(f"{path}: arr_0 is {pixels.dtype} {pixels.shape}; give uint8 (N, H, W, C) with C 1 or 3")
    if not len(pixels):
        raise AbsentError(f"{path} holds no images; export the samples again")
    labels = arrays.get("labels", arrays.get("arr_1"))
    numbers: tuple[int, ...] | None = None
    if labels is not None and labels.shape == (len(pixels),) and labels.dtype.kind in "iu" and labels.min() >= 0:
        numbers = tuple(labels.tolist())
    meta = parse_meta(str(arrays["meta"]), f"{path}: meta") if "meta" in arrays and arrays["meta"].ndim == 0 else None
    pixels_NCHW = archives.resize_pixels(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), image_size)
    return ImageCollection(str(path), pixels_NCHW, numbers, meta)
