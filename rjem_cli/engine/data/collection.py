"""Any set of images, whoever made it: a folder (flat, or one folder a class), an archive, an .npz, a tar on a stream.

What is known of the classes comes along: from rjem's labels.csv, from WebDataset's .cls members, from an .npz's
`labels`, or from the folders' names. So does rjem's own protocol (meta.json), where there is one.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from rjem_cli.engine.data.archives import OVERVIEWS, is_image, read_members, readable, tar_members
from rjem_cli.engine.data.class_folders import by_split, split_of
from rjem_cli.engine.data.decode import decode_all, stacked
from rjem_cli.engine.data.images import ImageSet, pixels_digest, spread_indices
from rjem_cli.errors import AbsentError, ConfigError, DataError

META_NAMES = {"meta.json", "__meta.json__"}
LABELS_NAME = "labels.csv"
ONE_CALL = ("checkpoint_sha256", "dataset.train_digest", "plan", "init", "init_sha256", "classes", "seed", "block_size")
SHARDED = re.compile(r"(.*/)?(?P<folder>\d{5,12})/(img)?(?P<number>\d{5,12})\.\w+")


@dataclass(frozen=True)
class ImageCollection:
    """pixels uint8 (N, C, H, W), C 1 or 3. `labels` (N,) are classes' names or numbers, or None where some image has
    none; `meta` is what rjem wrote beside its samples; `file_names` are there where the images are
    files, `ordered_classes` where the data set numbers its classes."""

    name: str
    pixels: Tensor
    labels: tuple[str, ...] | tuple[int, ...] | None = None
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
    def of(cls, images: ImageSet, name: str) -> ImageCollection:
        labels = tuple(images.class_names[label] for label in images.labels.tolist())
        return cls(name, images.pixels, labels, ordered_classes=images.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of their numbers; empty without labels."""
        if self.ordered_classes or not self.labels:
            return self.ordered_classes
        if isinstance(self.labels[0], int):
            return tuple(str(number) for number in range(max(map(int, self.labels)) + 1))
        return tuple(sorted(set(map(str, self.labels))))

    def spread(self, count: int | None) -> ImageCollection:
        """`count` images spread evenly, so that no class is left out; all for None. Raises DataError where there are
        fewer."""
        if count is None:
            return self
        if count > len(self):
            raise DataError(f"{self.name} has {len(self)} images, fewer than --num {count}")
        indices = spread_indices(len(self), count)
        places = indices.tolist()
        labels = None if self.labels is None else tuple(self.labels[place] for place in places)
        names = tuple(self.file_names[place] for place in places) if self.file_names else ()
        return replace(self, pixels=self.pixels[indices], labels=labels, file_names=names)

    def digest(self) -> str:
        return pixels_digest(self.pixels)

    def class_numbers(self, class_names: Sequence[str]) -> Tensor | None:
        """Labels (N,) as numbers among `class_names`; None where there are none, or one that is not among them."""
        if self.labels is None:
            return None
        number: dict[str | int, int] = {name: index for index, name in enumerate(class_names)}
        number |= {index: index for index in range(len(class_names))}
        found = [number.get(label, -1) for label in self.labels]
        return None if -1 in found else torch.tensor(found)

    def parts(self) -> dict[str, ImageSet]:
        """By split, as the folders' names tell, "train" where they tell none. Raises DataError without labels."""
        if self.labels is None:
            raise DataError(f"{self.name} has no classes; give class folders, such as cats/1.png dogs/1.png")
        names = self.file_names or [""] * len(self)
        splits, classes = [split_of(name) for name in names], [str(label) for label in self.labels]
        return by_split(splits, classes, self.pixels, self.class_names)


def as_one_set(parts: Sequence[ImageCollection]) -> ImageCollection:
    """Parts of one set of samples, in this order. Raises DataError for parts of several: other sizes of images, or by
    their meta.json another call, or the same samples."""
    first = parts[0]
    if len(parts) == 1:
        return first
    for part in parts:
        if part.image_shape != first.image_shape:
            shapes = f"{part.name} has images {part.image_shape}, {first.name} {first.image_shape}"
            raise DataError(f"{shapes}; parts of one set have one size")
    seen: dict[str, str] = {}
    for part in parts:
        if (digest := part.digest()) in seen:
            raise DataError(f"{part.name} has the images of {seen[digest]}; give each part once")
        seen[digest] = part.name
    return ImageCollection(
        ", ".join(part.name for part in parts),
        torch.cat([part.pixels for part in parts]),
        complete([label for part in parts for label in part.labels or [None]]),
        common_meta(parts),
    )


def common_meta(parts: Sequence[ImageCollection]) -> dict[str, Any] | None:
    """What rjem wrote of all; None where it wrote none of them. Raises DataError as `as_one_set` does."""
    first = parts[0]
    taken: list[range] = []
    for part in parts:
        if (part.meta is None) != (first.meta is None):
            bare, whole = (part, first) if part.meta is None else (first, part)
            raise DataError(f"{bare.name} has no protocol of rjem (meta), as {whole.name} has; score them one by one")
        for key in ONE_CALL:
            if value_at(part.meta, key) != value_at(first.meta, key):
                raise DataError(f"{part.name} is of another {key} than {first.name}; give the shards of one call")
        own = samples_of(part.meta)
        for before in taken:
            if (both := max(own.start, before.start)) < min(own.stop, before.stop):
                raise DataError(f"{part.name} holds sample {both}, which an earlier part has too; give each once")
        taken.append(own)
    if first.meta is None:
        return None
    common = {key: value for key, value in first.meta.items() if key not in ("samples", "shard", "request")}
    return {**common, "complete": all((part.meta or {}).get("complete") is not False for part in parts)}


def samples_of(meta: dict[str, Any] | None) -> range:
    """Which samples of a call these are; empty where it is not told."""
    match value_at(meta, "samples"):
        case [int(begin), int(end)]:
            return range(begin, end)
    return range(0)


def value_at(meta: dict[str, Any] | None, key: str) -> Any:
    """Of `outer.inner`, None where there is none."""
    found: Any = meta
    for name in key.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def read_collection(location: str) -> ImageCollection:
    """The images of a folder, a .zip, a tar or an .npz, sorted by name. Raises AbsentError for nothing there or no
    image, DataError with the file's name for what cannot be read, or is of another size than the rest."""
    path = readable(location)
    if path.is_file() and path.suffix.lower() == ".npz":
        return read_npz(path)
    if path.is_file() and is_image(PurePosixPath(path.name)):
        raise ConfigError(f"{location} is one image; give a folder of images, an archive or an .npz")
    return from_members(read_members(path, wanted), location)


def read_stream(stream: BinaryIO, name: str) -> ImageCollection:
    """The images of a tar on a stream, as `rjem generate -o -` writes it. Raises DataError for one that breaks off."""
    return from_members(tar_members(stream, name, wanted), name)


def wanted(name: PurePosixPath) -> bool:
    if name.name in OVERVIEWS:
        return False
    return is_image(name) or name.name in META_NAMES | {LABELS_NAME} or name.suffix == ".cls"


def from_members(members: Iterable[tuple[str, bytes]], location: str) -> ImageCollection:
    notes: dict[PurePosixPath, bytes] = {}  # what is no image: labels and meta

    def images() -> Iterable[tuple[str, bytes]]:
        for name, content in members:
            path = PurePosixPath(name)  # `./a.png` is `a.png`
            if is_image(path):
                yield str(path), content
            else:
                notes[path] = content

    found = decode_all(images(), location)
    if not found.names:
        raise AbsentError(f"{location} holds no images; give PNG files, class folders of them, an archive or an .npz")
    meta = only_note(notes, META_NAMES)
    labels = labels_of([PurePosixPath(name) for name in found.names], notes)
    protocol = None if meta is None else parsed(notes[meta], f"{location}: {meta}")
    return ImageCollection(location, stacked(found.arrays), labels, protocol, tuple(found.names))


def only_note(notes: Iterable[PurePosixPath], names: set[str]) -> PurePosixPath | None:
    """The one file of such a name, however deep; None where there are several, of different sets."""
    found = [path for path in notes if path.name in names]
    return found[0] if len(found) == 1 else None


def labels_of(
    names: Sequence[PurePosixPath], notes: dict[PurePosixPath, bytes]
) -> tuple[str, ...] | tuple[int, ...] | None:
    """Classes by name from labels.csv, by number from .cls members, by name from folders; None if an image has none."""
    table = only_note(notes, {LABELS_NAME})
    if table is not None:
        rows = csv.DictReader(notes[table].decode("utf-8", errors="surrogateescape").splitlines())
        try:
            classes = {table.parent / row["file"]: row["class"] for row in rows if row.get("label") != "-1"}
        except (csv.Error, KeyError, TypeError):  # no such table of rjem's
            return None
        return complete([classes.get(name) for name in names])
    numbers = [notes.get(name.with_suffix(".cls"), b"").strip() for name in names]
    if any(numbers):
        return complete([int(number) if number.isdigit() and len(number) < 10 else None for number in numbers])
    if all(is_shard(name) for name in names):
        return None
    folders = [name.parts[:-1] for name in names]
    classes_seen = {parts[-1] for parts in folders if parts}
    return complete([parts[-1] if parts else None for parts in folders]) if len(classes_seen) > 1 else None


def is_shard(name: PurePosixPath) -> bool:
    """Whether its folder only cuts a long list into thousands, as EDM's 001000/001234.png and 00001/img00001234.png."""
    found = SHARDED.fullmatch(str(name))
    if found is None:
        return False
    folder, thousands = int(found["folder"]), int(found["number"]) // 1000
    return folder in (thousands, 1000 * thousands)


def complete(labels: list[Any]) -> tuple[Any, ...] | None:
    return None if None in labels else tuple(labels)


def parsed(text: bytes | str, name: str) -> dict[str, Any] | None:
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(f"{name} is no JSON; remove it, or write the samples again") from None
    return meta if isinstance(meta, dict) and "rjem" in meta else None


@contextlib.contextmanager
def opened_npz(path: Path) -> Iterator[Any]:
    """Its arrays, each read when it is asked for; objects, which would be pickles, are refused. Raises DataError."""
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("it is one array without a name, an .npy")
        with archive:
            yield archive
    except Exception as error:  # numpy parses headers as Python, and raises many types; all mean the same here
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        if "pickle" in reason.lower():
            reason = "it is none, or holds objects"
        raise DataError(f"{path} is no whole .npz of plain arrays ({reason}); write it again") from None


def load_arrays(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Those of these arrays that an .npz holds. Raises DataError."""
    with opened_npz(path) as archive:
        return {name: archive[name] for name in names if name in archive}


def array_names(path: Path) -> set[str]:
    """Without reading the arrays. Raises DataError."""
    with opened_npz(path) as archive:
        return set(archive.files)


def read_npz(path: Path) -> ImageCollection:
    """arr_0 (N, H, W, C) uint8, as ADM and rjem write it, with `labels` (ADM: arr_1) and rjem's `meta` where they
    are."""
    arrays = load_arrays(path, ("arr_0", "arr_1", "labels", "meta"))
    pixels = arrays.get("arr_0")
    if pixels is None:
        raise DataError(f"{path} has no array arr_0; give samples as arr_0, uint8 (N, H, W, C)")
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3):
        raise DataError(f"{path}: arr_0 is {pixels.dtype} {pixels.shape}; give uint8 (N, H, W, C) with C 1 or 3")
    if not len(pixels):
        raise AbsentError(f"{path} holds no images; write the samples again")
    labels = arrays.get("labels", arrays.get("arr_1"))
    numbers: tuple[int, ...] | None = None
    if labels is not None and labels.shape == (len(pixels),) and labels.dtype.kind in "iu" and labels.min() >= 0:
        numbers = tuple(labels.tolist())
    meta = parsed(str(arrays["meta"]), f"{path}: meta") if "meta" in arrays and arrays["meta"].ndim == 0 else None
    return ImageCollection(str(path), torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), numbers, meta)


def with_channels(pixels: Tensor, channels: int, name: str) -> Tensor:
    """Grey pixels in three equal channels, or coloured ones that are grey in one. Raises DataError for real colour
    where grey is wanted."""
    if pixels.shape[1] == channels:
        return pixels
    if channels == 3:
        return pixels.expand(-1, 3, -1, -1)
    if not (pixels == pixels[:, :1]).all():
        raise DataError(f"images of {name} are coloured, those they are compared with grey; convert them")
    return pixels[:, :1]
