"""Labelled images as uint8, their conversion to and from the network's range, class names, and splits.

`pixels` is uint8 (N, C, H, W); `x` is float in [-1, 1].
"""

import csv
import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rjem_cli.errors import ConfigError, DataError, did_you_mean

SPLIT_SEED = 20220  # fixed, so that a data set has the same splits in every run
TEST_FRACTION = 0.2  # of a data set without a test set
UNCONDITIONAL = "none"  # in place of a class


def to_model(pixels: Tensor) -> Tensor:
    """uint8 0..255 to float32 [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1)


def to_pixels(x: Tensor) -> Tensor:
    """Float to uint8, clamped to [-1, 1] and rounded."""
    return x.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def pixels_digest(pixels: Tensor) -> str:
    """sha256 of the shape and the pixels, in their order."""
    content = hashlib.sha256(repr(tuple(pixels.shape)).encode())
    content.update(pixels.contiguous().numpy().data)
    return content.hexdigest()


def hash_images(pixels: Tensor) -> list[bytes]:
    """A digest of each image."""
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in pixels.cpu().contiguous().numpy()]


def convert_channels(pixels: Tensor, channels: int, name: str) -> Tensor:
    """Pixels (N, C, H, W) with 1 or 3 channels. Raises DataError where `channels` is 1 and the images have colour."""
    if pixels.shape[1] == channels:
        return pixels
    if channels == 3:
        return pixels.expand(-1, 3, -1, -1)
    if not (pixels == pixels[:, :1]).all():
        raise DataError(f"images of {name} are in colour, but grey images are needed; convert them")
    return pixels[:, :1]


@dataclass(frozen=True)
class ImageSet:
    """Images and labels. pixels: uint8 (N, C, H, W), C = 1 or 3. labels: (N,), any integer type, stored as int64.
    Raises TypeError for other types, and ValueError for other shapes or labels out of range."""

    pixels: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        pixels, labels, names = self.pixels, self.labels, self.class_names
        if not isinstance(pixels, Tensor) or not isinstance(labels, Tensor):
            raise TypeError(f"pixels and labels are {type(pixels).__name__} and {type(labels).__name__}; give tensors")
        if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"class_names are {names!r:.80}; give a tuple of strings")
        if pixels.dtype != torch.uint8:
            hint = "; for x in [0, 1]: (255 * x).round().to(torch.uint8)" if pixels.is_floating_point() else ""
            raise TypeError(f"pixels have dtype {pixels.dtype}; give torch.uint8 from 0 to 255{hint}")
        if pixels.dim() != 4 or pixels.shape[1] not in (1, 3) or 0 in pixels.shape[2:]:
            raise ValueError(
                f"pixels have shape {tuple(pixels.shape)}; give (N, C, H, W) with C = 1 or 3 and H, W above 0"
            )
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise TypeError(f"labels have dtype {labels.dtype}; give integers")
        if labels.shape != pixels.shape[:1]:
            raise ValueError(f"labels have shape {tuple(labels.shape)} for {len(pixels)} images; give one per image")
        labels = labels.long()
        if labels.device.type == "cpu" and len(labels):  # on a GPU this would force a synchronization
            low, high, count = int(labels.min()), int(labels.max()), len(names)
            if low < 0 or high >= count:
                raise ValueError(
                    f"labels range from {low} to {high} with {count} class names; give labels from 0 to {count - 1}"
                )
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def subset(self, indices: Tensor) -> "ImageSet":
        return replace(self, pixels=self.pixels[indices], labels=self.labels[indices])

    def to(self, device: torch.device) -> "ImageSet":
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))

    def sort(self) -> "ImageSet":
        """The images by class, then by pixels: the same for equal sets in any order."""
        keys = [(label, image.tobytes()) for label, image in zip(self.labels.tolist(), self.pixels.cpu().numpy())]
        return self.subset(torch.tensor(sorted(range(len(keys)), key=keys.__getitem__)))

    def digest(self) -> str:
        """sha256 of class names, shape, labels and pixels; the key of caches of anything fitted to these images."""
        content = hashlib.sha256(repr((self.class_names, tuple(self.pixels.shape))).encode())
        content.update(self.labels.cpu().numpy().tobytes())
        content.update(self.pixels.cpu().contiguous().numpy().tobytes())
        return content.hexdigest()


@dataclass(frozen=True)
class Splits:
    """One data set in parts. `read_summary`: what was read of a user's images, in one line."""

    name: str
    train: ImageSet
    val: ImageSet
    test: ImageSet
    read_summary: str = ""

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.class_names

    @property
    def parts(self) -> tuple[ImageSet, ImageSet, ImageSet]:
        return self.train, self.val, self.test


def concatenate(parts: Sequence[ImageSet]) -> ImageSet:
    """Image sets of the same classes, one after another."""
    pixels, labels = torch.cat([part.pixels for part in parts]), torch.cat([part.labels for part in parts])
    return ImageSet(pixels, labels, parts[0].class_names)


def spread_indices(count: int, limit: int) -> Tensor:
    """At most `limit` distinct indices spread evenly over `count`; 0 means all."""
    if limit == 0 or limit >= count:
        return torch.arange(count)
    gaps = max(1, limit - 1)
    return (2 * torch.arange(limit) * (count - 1) + gaps) // (2 * gaps)  # rounded in integers: all are distinct


def split_off(images: ImageSet, fraction: float) -> tuple[ImageSet, ImageSet]:
    """(the remaining images, a fixed random `fraction` of each class), both in their old order."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    selected = torch.zeros(len(images), dtype=torch.bool)
    for label in range(len(images.class_names)):
        members = order[images.labels[order] == label]
        selected[members[: round(fraction * len(members))]] = True
    return images.subset((~selected).nonzero().squeeze(1)), images.subset(selected.nonzero().squeeze(1))


def build_splits(name: str, images: ImageSet, test: ImageSet | None, val_fraction: float) -> Splits:
    """Split off validation images, and test images where `test` is None, with a fixed seed. Raises DataError if a class
    has no training image or no test image is left."""
    if test is None:
        images, test = split_off(images, TEST_FRACTION)
    train, val = split_off(images, val_fraction)
    counts = torch.bincount(train.labels, minlength=len(train.class_names))
    for label, class_name in enumerate(train.class_names):
        if counts[label] == 0:
            raise DataError(f"class {class_name!r} of {name} has no training image; add some or remove its folder")
    if len(test) == 0:
        raise DataError(f"{name} has too few images to split off a test set; add images, or give --test-data")
    return Splits(name, train, val, test)


def parse_classes(text: str, class_names: Sequence[str]) -> list[int]:
    """Class indices from `all`, or from names and numbers separated by commas; a name with a comma is quoted. `none`
    gives all classes, too, since unconditional chains start from any. Raises ConfigError with the nearest name."""
    if text in ("all", UNCONDITIONAL):
        return list(range(len(class_names)))
    try:
        words = [text] if text in class_names else next(csv.reader([text], skipinitialspace=True), []) or [text]
    except csv.Error:
        words = [text]
    return [parse_class(word.strip(), class_names, "--class") for word in words]


def parse_class(word: str, class_names: Sequence[str], flag: str) -> int:
    """The index of a class given by its name, or by its number unless all names are numbers. Raises ConfigError."""
    word = unicodedata.normalize("NFC", word)
    if word in class_names:
        return class_names.index(word)
    names_are_numbers = all(name.isdecimal() for name in class_names)
    if word.isdecimal() and len(word) < 10 and int(word) < len(class_names) and not names_are_numbers:
        return int(word)
    raise ConfigError(f"{flag} {word!r} is unknown to this checkpoint; {did_you_mean(word, class_names)}")
