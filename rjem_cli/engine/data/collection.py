"""Sets of images from any source: a folder (flat, or one folder per class), an archive, an .npz, a tar stream.

Classes and splits come from the layout of the files (`layout`), or from the `labels` of an .npz. rjem's meta.json,
which describes how samples were made, is read too.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from rjem_cli.engine.data import archives
from rjem_cli.engine.data.annotations import SIDECARS, is_table
from rjem_cli.engine.data.archives import Selection
from rjem_cli.engine.data.decode import decode_images, has_signature, resize_pixels
from rjem_cli.engine.data.images import ImageSet, convert_channels, pixels_digest, spread_indices
from rjem_cli.engine.data.layout import EXAMPLE, Layout, find_layout
from rjem_cli.engine.data.npz import load_arrays
from rjem_cli.errors import AbsentError, ConfigError, DataError, pluralize

META_NAMES = {"meta.json", "__meta.json__"}
# What is equal in the meta.json of all shards of one `rjem generate`
CALL_KEYS = "checkpoint_sha256 dataset.train_digest plan init init_sha256 classes seed block_size".split()
RJEM_FILES = {*META_NAMES, "labels.csv", "chains.json", "attack.json", "eval.json"}  # beside rjem's figures
MAX_SIDECAR_BYTES = 2**20
ARCHIVE_SUFFIXES = {".tar", ".zip", ".gz", ".tgz", ".parquet"}
MAX_CLASS_NAMES = 5  # in the line that says what was read
HINT = "give PNG files, class folders of them, an archive or an .npz"

Labels = tuple[str, ...] | tuple[int, ...]  # class names or numbers


@dataclass(frozen=True)
class ImageCollection:
    """pixels: uint8 (N, C, H, W), C 1 or 3. labels: (N,), None if an image has none. meta: rjem's description of its
    samples. layout: splits, and classes of the images that have one. ordered_classes: class names by number, if the
    data set has them. read_summary: what was read and what was not, in one line."""

    name: str
    pixels: Tensor
    labels: Labels | None = None
    meta: dict[str, Any] | None = None
    layout: Layout | None = None
    ordered_classes: tuple[str, ...] = ()
    read_summary: str = ""

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
    def has_splits(self) -> bool:
        """Whether folders or a table name splits."""
        return self.layout is not None and self.layout.has_splits

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
        return replace(self, pixels=self.pixels[indices], labels=labels, layout=None)

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
        """Image sets of train, val and test, "train" without splits; without the images of val and test that have no
        class. All have the same class names, sorted. Raises DataError if an image has no class."""
        layout = self.layout or Layout(("train",) * len(self), self.labels or (None,) * len(self))
        known = {label for label in layout.labels if label is not None}
        if layout.problem or not known:
            problem = layout.problem or f"the images have no classes; {EXAMPLE}"
            raise DataError("; ".join((f"{self.name}: {problem}", *(n for n in layout.notes if n not in problem))))
        ordered = sorted(known, key=lambda label: (isinstance(label, str), label))
        class_names = self.ordered_classes or tuple(map(str, ordered))
        index = {name: number for number, name in enumerate(class_names)}
        sets: dict[str, ImageSet] = {}
        for split in sorted({*layout.splits} & {"train", "val", "test"}):
            members = [row for row, own in enumerate(layout.splits) if own == split and layout.labels[row] is not None]
            if members:
                labels = torch.tensor([index[str(layout.labels[row])] for row in members])
                sets[split] = ImageSet(self.pixels[members], labels, class_names)
        return sets


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
        read_summary="; ".join(part.read_summary for part in parts),
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
    suffix = path.suffix.lower()
    if path.is_file() and suffix == ".npz":
        return read_npz(path, image_size)
    if path.is_file() and suffix == ".npy":
        raise DataError(f"{location} is a single array; save images with np.savez as arr_0, uint8 (N, H, W, C)")
    if path.is_file() and archives.is_image(PurePosixPath(path.name)):
        raise ConfigError(f"{location} is a single image; give a folder of images, an archive or an .npz")
    selection = Selection(text_limit)
    return collect_members(archives.read_members(path, selection), location, image_size, selection)


read_collection_cached = archives.cache_archives(read_collection)


def read_images(location: str, image_shape: tuple[int, int, int], image_size: int | None = None) -> ImageCollection:
    """The images of `read_collection`, or of one image file, in the shape (C, H, W) of a checkpoint. Raises
    AbsentError, and DataError for images of another size, or with colour where C is 1."""
    path = archives.check_readable(location)
    if path.is_file() and archives.is_image(PurePosixPath(path.name)):
        selection = Selection(text_limit)
        with archives.archive_errors(location):
            selection.accepts(location, PurePosixPath("image" + path.suffix), path.stat().st_size)
            collection = collect_members([(path.name, path.read_bytes())], location, image_size, selection)
    else:
        collection = read_collection(location, image_size)
    channels, height, width = image_shape
    _, own_height, own_width = collection.image_shape
    if (own_height, own_width) != (height, width):
        raise DataError(
            f"images of {location} are {own_width}x{own_height}; this checkpoint takes {width}x{height}"
            f"{suggest_size(image_shape)}"
        )
    return replace(collection, pixels=convert_channels(collection.pixels, channels, location).contiguous())


def suggest_size(image_shape: tuple[int, int, int]) -> str:
    """How to resize images for a checkpoint; empty if it does not take squares."""
    _, height, width = image_shape
    return f"; add --image-size {width}" if height == width else ""


def read_stream(stream: BinaryIO, name: str, image_size: int | None = None) -> ImageCollection:
    """The images of a tar stream, as `rjem generate -o -` writes it. Raises DataError for an incomplete one."""
    selection = Selection(text_limit)
    return collect_members(archives.read_tar_members(stream, name, selection), name, image_size, selection)


def text_limit(name: PurePosixPath) -> int:
    """How many bytes a file that describes images may have; 0 for other files."""
    if name.name in RJEM_FILES or is_table(name):
        return archives.MAX_FILE_BYTES
    return MAX_SIDECAR_BYTES if name.suffix in SIDECARS else 0


def collect_members(
    members: Iterable[archives.Member], location: str, image_size: int | None, selection: Selection
) -> ImageCollection:
    texts: dict[PurePosixPath, bytes] = {}
    figures: list[archives.Member] = []
    rjem_folders: set[PurePosixPath] = set()

    def images() -> Iterator[archives.Member]:
        for member in members:
            path = PurePosixPath(member[0])
            if path.name in archives.FIGURE_NAMES:
                figures.append(member)
            elif archives.is_image(path) or (not path.suffix and has_signature(member[1])):
                yield member
            else:
                texts[path] = member[1] if path.suffix else b""
        rjem_folders.update(path.parent for path in texts if path.name in RJEM_FILES)
        yield from (figure for figure in figures if PurePosixPath(figure[0]).parent not in rjem_folders)

    try:
        decoded = decode_images(images(), location, HINT, image_size)
    except AbsentError as error:
        others = selection.skipped + Counter(text.suffix or "without a suffix" for text in texts)
        inner = "; unpack or export these first" if ARCHIVE_SUFFIXES & set(others) else ""
        raise AbsentError(f"{error} (found: {describe_kinds(others)}{inner})" if others else str(error)) from None
    names = [PurePosixPath(name) for name in decoded.names]
    layout = find_layout(names, texts)
    meta_name = find_unique(texts, META_NAMES)
    meta = None if meta_name is None else parse_meta(texts[meta_name], f"{location}: {meta_name}")
    unused = [text for text in texts if text not in layout.used and text.name not in RJEM_FILES]
    skipped = selection.skipped + Counter(text.suffix or "without a suffix" for text in unused)
    skipped["figures of rjem"] += sum(PurePosixPath(name).parent in rjem_folders for name, _ in figures)
    is_one_folder = len(set(layout.labels)) < 2 and not layout.used
    labels = None if is_one_folder else complete_labels(layout.labels)
    summary = describe_reading(location, layout, skipped, decoded.animations)
    if selection.undecodable_name:
        summary += f"; names that are not in Unicode, such as {selection.undecodable_name}"
    return ImageCollection(location, decoded.pixels, labels, meta, layout, read_summary=summary)


def describe_reading(location: str, layout: Layout, skipped: Counter[str], animations: int = 0) -> str:
    """`read photos: 120 images, 2 classes, train 100, test 20; passed over 3 files (2 .txt, 1 .json)`, and what is
    unusual."""
    count, classes = len(layout.labels), len(set(layout.labels) - {None})
    parts = [pluralize(count, "image"), pluralize(classes, "class", "classes") if classes else "no classes"]
    if 0 < classes <= MAX_CLASS_NAMES:
        parts[-1] += f" ({', '.join(sorted(map(str, set(layout.labels) - {None})))})"
    if layout.has_splits:
        parts += [f"{split} {layout.splits.count(split)}" for split in sorted(set(layout.splits))]
    sentences = [f"read {location}: {', '.join(parts)}"]
    if total := skipped.total():
        sentences.append(f"passed over {pluralize(total, 'file')} ({describe_kinds(skipped)})")
    if animations:
        sentences.append(f"read the first image of {pluralize(animations, 'file')} with several")
    return "; ".join([*sentences, *layout.notes])


def describe_kinds(skipped: Counter[str]) -> str:
    """`2 .txt, 1 .json`."""
    return ", ".join(f"{number} {kind}" for kind, number in skipped.most_common() if number)


def find_unique(paths: Iterable[PurePosixPath], names: set[str]) -> PurePosixPath | None:
    """The only file with one of these names, in any folder; None if there are several, of different sets."""
    matches = [path for path in paths if path.name in names]
    return matches[0] if len(matches) == 1 else None


def complete_labels(labels: Sequence[Any]) -> tuple[Any, ...] | None:
    return None if None in labels else tuple(labels)


def parse_meta(text: bytes | str, name: str) -> dict[str, Any] | None:
    """rjem's meta.json; None for another program's. Raises DataError for a damaged one of rjem."""
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError):
        if '"rjem"' not in str(text):
            return None
        raise DataError(f"{name} is not valid JSON; remove it, or export the samples again") from None
    return meta if isinstance(meta, dict) and "rjem" in meta else None


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
    pixels_NCHW = resize_pixels(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), image_size)
    layout = Layout(("train",) * len(pixels), numbers or (None,) * len(pixels))
    summary = describe_reading(str(path), layout, Counter())
    return ImageCollection(str(path), pixels_NCHW, numbers, meta, layout, read_summary=summary)
