"""CIFAR-10, CIFAR-100 and SVHN as their authors publish them in files without pickles: CIFAR's binary version, SVHN's
MATLAB files."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from rjem_cli import paths
from rjem_cli.engine.callbacks import noop
from rjem_cli.engine.data.fetch import RemoteFile, Report, Tell, fetched, is_there
from rjem_cli.engine.data.images import ImageSet
from rjem_cli.errors import AbsentError

SIDE = 32  # pixels


class DatasetInfo(NamedTuple):
    """What a set's authors say is in it."""

    image_shape: tuple[int, int, int]
    classes: int
    train: int
    test: int

    def split(self, val_fraction: float) -> tuple[int, int]:
        """How many images are trained on, and how many are kept for validation."""
        val = round(self.train * val_fraction)
        return self.train - val, val


class Cifar(NamedTuple):
    """One archive. A record is `label_bytes`, the last of which is the class, and three planes of 32x32."""

    archive: RemoteFile
    label_bytes: int
    train: tuple[str, ...]
    test: str
    names: str


CIFAR = {
    "cifar10": Cifar(
        RemoteFile(
            "cifar-10-binary.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            170_052_171,
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
        1,
        tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        "test_batch.bin",
        "batches.meta.txt",
    ),
    "cifar100": Cifar(
        RemoteFile(
            "cifar-100-binary.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            168_513_733,
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        ),
        2,
        ("train.bin",),
        "test.bin",
        "fine_label_names.txt",
    ),
}
SVHN = (
    RemoteFile(
        "train_32x32.mat",
        "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
        182_040_794,
        "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
    ),
    RemoteFile(
        "test_32x32.mat",
        "http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
        64_275_384,
        "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
    ),
)
DOWNLOADED = (*CIFAR, "svhn")
DATASET_INFO = {
    "cifar10": DatasetInfo((3, SIDE, SIDE), 10, 50_000, 10_000),
    "cifar100": DatasetInfo((3, SIDE, SIDE), 100, 50_000, 10_000),
    "svhn": DatasetInfo((3, SIDE, SIDE), 10, 73_257, 26_032),
}


def folder_of(name: str) -> Path:
    return paths.datasets_dir() / name


def files_of(name: str) -> tuple[RemoteFile, ...]:
    return (CIFAR[name].archive,) if name in CIFAR else SVHN


def is_downloaded(name: str) -> bool:
    """Whether its files are there; what is in them is checked when they are read."""
    return all(is_there(file, folder_of(name)) for file in files_of(name))


def read_downloaded(name: str, report: Report = noop, tell: Tell = noop) -> tuple[ImageSet, ImageSet]:
    """(train, test) of `cifar10`, `cifar100` or `svhn`. Raises AbsentError if it is absent and cannot be downloaded."""
    try:
        contents = [fetched(file, folder_of(name), report, tell) for file in files_of(name)]
    except AbsentError as error:
        raise AbsentError(
            f"{name} cannot be had: {error}; fetch {' and '.join(file.url for file in files_of(name))} elsewhere into "
            f"{folder_of(name)}, or give images of your own (--data; of a score, --reference)"
        ) from None
    if name in CIFAR:
        return read_cifar(contents[0], CIFAR[name])
    return read_svhn(contents[0]), read_svhn(contents[1])


def read_cifar(archive: bytes, layout: Cifar) -> tuple[ImageSet, ImageSet]:
    """(train, test) of the binary version, in the order of its files."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        files = {Path(member.name).name: member for member in members if member.isfile()}

        def content(name: str) -> bytes:
            file = members.extractfile(files[name])
            assert file is not None
            return file.read()

        names = tuple(re.sub(r"\s+", "_", name.strip()) for name in content(layout.names).decode().split("\n") if name)

        def part(file_names: tuple[str, ...]) -> ImageSet:
            width = layout.label_bytes + 3 * SIDE * SIDE
            records = np.frombuffer(b"".join(content(name) for name in file_names), np.uint8).reshape(-1, width)
            pixels = records[:, layout.label_bytes :].reshape(-1, 3, SIDE, SIDE)
            labels = records[:, layout.label_bytes - 1].astype(np.int64)
            return ImageSet(torch.from_numpy(pixels.copy()), torch.from_numpy(labels), names)

        return part(layout.train), part((layout.test,))


def read_svhn(content: bytes) -> ImageSet:
    """X (H, W, C, N) and y (N, 1), in which 10 is the digit 0."""
    from scipy.io import loadmat

    arrays = loadmat(io.BytesIO(content))
    pixels = torch.from_numpy(np.ascontiguousarray(arrays["X"].transpose(3, 2, 0, 1)))
    labels = torch.from_numpy(arrays["y"].reshape(-1).astype(np.int64) % 10)
    return ImageSet(pixels, labels, tuple(str(digit) for digit in range(10)))
