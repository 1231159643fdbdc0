"""Published data sets: what they contain, their download and their formats.

rjem reads CIFAR from its authors' binary version; torchvision downloads and reads the other data sets. No pickle is
read. Downloads happen once, under a lock, and never with RJEM_OFFLINE.
"""

import contextlib
import io
import os
import re
import shutil
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from rjem_cli import files, paths
from rjem_cli.engine.callbacks import Log, OnProgress, noop
from rjem_cli.engine.data.images import ImageSet
from rjem_cli.engine.data.remote_file import TIMEOUT, RemoteFile, fetch_file, is_present
from rjem_cli.errors import AbsentError, DataError, RjemError, summarize


class DatasetInfo(NamedTuple):
    """What a data set contains, known without a download."""

    image_shape: tuple[int, int, int]
    classes: int
    train: int
    test: int
    megabytes: int  # of the download
    mirrors: bool = False  # whether a mirrored image has the same class, unlike a digit

    def split(self, val_fraction: float) -> tuple[int, int]:
        """The numbers of training and validation images."""
        val = round(self.train * val_fraction)
        return self.train - val, val


DATASET_INFO = {
    "cifar10": DatasetInfo((3, 32, 32), 10, 50_000, 10_000, 170, mirrors=True),
    "cifar100": DatasetInfo((3, 32, 32), 100, 50_000, 10_000, 169, mirrors=True),
    "svhn": DatasetInfo((3, 32, 32), 10, 73_257, 26_032, 246),
    "mnist": DatasetInfo((1, 28, 28), 10, 60_000, 10_000, 12),
    "fashion-mnist": DatasetInfo((1, 28, 28), 10, 60_000, 10_000, 31, mirrors=True),
    "kmnist": DatasetInfo((1, 28, 28), 10, 60_000, 10_000, 21),
    "emnist": DatasetInfo((1, 28, 28), 26, 124_800, 20_800, 562),
    "stl10": DatasetInfo((3, 96, 96), 10, 5_000, 8_000, 2640, mirrors=True),
}


class Cifar(NamedTuple):
    """An archive of records: `label_bytes`, the last of which is the class, then three planes of 32x32."""

    archive: RemoteFile
    label_bytes: int
    train: tuple[str, ...]
    test: str
    names: str


class TorchvisionSet(NamedTuple):
    """A data set that torchvision downloads and reads. `files` are the unpacked files below the data set's folder,
    `parts` torchvision's arguments for the training and the test part. Class names are also names of folders and
    words on the command line, so they have no slash, comma or space."""

    class_name: str
    url: str
    files: tuple[str, ...]
    parts: dict[str, dict[str, Any]]
    class_names: tuple[str, ...]


def describe_mnist(class_name: str, url: str, class_names: str) -> TorchvisionSet:
    """A data set of the same form as MNIST."""
    files = tuple(f"{class_name}/raw/{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in IDX_KINDS)
    parts = {"train": {"train": True}, "test": {"train": False}}
    return TorchvisionSet(class_name, url, files, parts, tuple(class_names.split()))


TORONTO = "https://www.cs.toronto.edu/~kriz"
CIFAR10_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CIFAR100_SHA256 = "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"
CIFAR = {
    "cifar10": Cifar(
        RemoteFile("cifar-10-binary.tar.gz", f"{TORONTO}/cifar-10-binary.tar.gz", 170_052_171, CIFAR10_SHA256),
        label_bytes=1,
        train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test="test_batch.bin",
        names="batches.meta.txt",
    ),
    "cifar100": Cifar(
        RemoteFile("cifar-100-binary.tar.gz", f"{TORONTO}/cifar-100-binary.tar.gz", 168_513_733, CIFAR100_SHA256),
        label_bytes=2,
        train=("train.bin",),
        test="test.bin",
        names="fine_label_names.txt",
    ),
}
DIGITS = "0 1 2 3 4 5 6 7 8 9"
IDX_KINDS = ("images-idx3", "labels-idx1")
BY_SPLIT = {"train": {"split": "train"}, "test": {"split": "test"}}
TORCHVISION = {
    "svhn": TorchvisionSet(
        "SVHN",
        "http://ufldl.stanford.edu/housenumbers/",
        ("train_32x32.mat", "test_32x32.mat"),
        BY_SPLIT,
        tuple(DIGITS.split()),
    ),
    "mnist": describe_mnist("MNIST", "https://ossci-datasets.s3.amazonaws.com/mnist/", DIGITS),
    "fashion-mnist": describe_mnist(
        "FashionMNIST",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "T-shirt-top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Ankle-boot",
    ),
    "kmnist": describe_mnist(
        "KMNIST", "http://codh.rois.ac.jp/kmnist/dataset/kmnist/", "o ki su tsu na ha ma ya re wo"
    ),
    "emnist": TorchvisionSet(  # "letters": two classes of "balanced", A and a, are one folder on some file systems
        "EMNIST",
        "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",
        tuple(f"EMNIST/raw/emnist-letters-{part}-{kind}-ubyte" for part in ("train", "test") for kind in IDX_KINDS),
        {"train": {"split": "letters", "train": True}, "test": {"split": "letters", "train": False}},
        tuple("abcdefghijklmnopqrstuvwxyz"),
    ),
    "stl10": TorchvisionSet(
        "STL10",
        "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
        tuple(f"stl10_binary/{name}.bin" for name in ("train_X", "train_y", "test_X", "test_y")),
        BY_SPLIT,
        tuple("airplane bird car cat deer dog horse monkey ship truck".split()),
    ),
}


def dataset_folder(name: str) -> Path:
    return paths.datasets_dir() / name


def is_downloaded(name: str) -> bool:
    """Whether the data set's files exist. Their content is checked when they are read."""
    if name in CIFAR:
        return is_present(CIFAR[name].archive, dataset_folder(name))
    return all((dataset_folder(name) / file).is_file() for file in TORCHVISION[name].files)


def describe_download(name: str) -> str | None:
    """What a call does first to get a built-in data set; None if it is here."""
    if name not in DATASET_INFO or is_downloaded(name):
        return None
    size = f"{DATASET_INFO[name].megabytes} MB"
    if paths.offline():
        return f"{name} is missing, and RJEM_OFFLINE forbids its download ({size})"
    return f"downloads {name} first, {size}"


def load_published(name: str, on_progress: OnProgress = noop, warn: Log = noop) -> tuple[ImageSet, ImageSet]:
    """(train, test) of a data set in DATASET_INFO, downloaded if necessary. Raises AbsentError if it is missing and
    cannot be downloaded, DataError if its files are damaged."""
    folder = dataset_folder(name)
    try:
        if name in CIFAR:
            return read_cifar(fetch_file(CIFAR[name].archive, folder, on_progress, warn), CIFAR[name])
        if not is_downloaded(name):
            download_with_torchvision(name, folder, on_progress)
    except AbsentError as error:
        url = CIFAR[name].archive.url if name in CIFAR else TORCHVISION[name].url
        files_needed = "" if name in CIFAR else f" (unpacked: {', '.join(TORCHVISION[name].files)})"
        raise AbsentError(
            f"{name} is not available: {error}; download {url} elsewhere into {folder}{files_needed}, "
            "or use your own images (--data; for samples --reference)"
        ) from None
    return read_with_torchvision(name, folder, "train"), read_with_torchvision(name, folder, "test")


def read_cifar(archive: bytes, layout: Cifar) -> tuple[ImageSet, ImageSet]:
    """(train, test) of the binary version, in the order of its files."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        opened = ((Path(member.name).name, members.extractfile(member)) for member in members)
        contents = {name: file.read() for name, file in opened if file is not None}
    lines = contents[layout.names].decode().split("\n")
    class_names = tuple(re.sub(r"\s+", "_", line.strip()) for line in lines if line)

    def read_part(file_names: tuple[str, ...]) -> ImageSet:
        width = layout.label_bytes + 3 * 32 * 32
        records = np.frombuffer(b"".join(contents[name] for name in file_names), np.uint8).reshape(-1, width)
        pixels = records[:, layout.label_bytes :].reshape(-1, 3, 32, 32)
        labels = records[:, layout.label_bytes - 1].astype(np.int64)
        return ImageSet(torch.from_numpy(pixels.copy()), torch.from_numpy(labels), class_names)

    return read_part(layout.train), read_part((layout.test,))


def get_torchvision_class(name: str) -> Any:
    """torchvision's data set class, without MNIST's older files, which are pickles, and STL10's unlabeled images."""
    from torchvision import datasets

    base = getattr(datasets, TORCHVISION[name].class_name)
    changes = {"_check_legacy_exist": lambda self: False, "train_list": getattr(base, "train_list", [])[:2]}
    return type(base.__name__, (base,), changes)


def download_with_torchvision(name: str, folder: Path, on_progress: OnProgress) -> None:
    """Download and unpack below `folder`/.download, then move the needed files to their place, so that an interrupted
    download leaves no incomplete file there. Raises AbsentError."""
    dataset, temporary, phase = TORCHVISION[name], folder / ".download", f"downloading {name}"
    if paths.offline():
        raise AbsentError(f"it is not in {folder}, and RJEM_OFFLINE forbids the download")
    with files.locked(folder / name, on_wait=lambda: on_progress(phase, 0, 1)):
        if is_downloaded(name):  # by another process
            return
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            with report_torchvision_downloads(on_progress, phase):
                for arguments in dataset.parts.values():
                    get_torchvision_class(name)(temporary, download=True, **arguments)
            for file in dataset.files:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(temporary / file, folder / file)
        except (RjemError, MemoryError):  # RjemError: from on_progress
            raise
        except Exception as error:  # network errors have many types, and torchvision turns some into RuntimeError
            raise AbsentError(f"cannot download {dataset.url} ({summarize(error)})") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def report_torchvision_downloads(on_progress: OnProgress, phase: str) -> Iterator[None]:
    """Send torchvision's progress to `on_progress` instead of stderr, and limit the time it waits for a byte."""
    from torchvision.datasets import utils

    class Bar:
        def __init__(self, total: int | None = None, **options: object):
            self.done, self.total = 0, total or 0

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *error: object) -> None: ...

        def update(self, count: int) -> None:
            self.done += count
            on_progress(phase, self.done, max(self.done, self.total))

    original, timeout = utils.tqdm, socket.getdefaulttimeout()
    utils.tqdm = Bar
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        utils.tqdm = original
        socket.setdefaulttimeout(timeout)


def read_with_torchvision(name: str, folder: Path, part: Literal["train", "test"]) -> ImageSet:
    """One part of a downloaded data set. Raises DataError for damaged files."""
    dataset, info, dataset_class = TORCHVISION[name], DATASET_INFO[name], get_torchvision_class(name)
    try:
        data = dataset_class(folder, **dataset.parts[part])
        pixels = torch.as_tensor(data.data)
        labels = torch.as_tensor(data.labels if hasattr(data, "labels") else data.targets)
        if name == "emnist":  # published transposed, with labels from 1
            pixels, labels = pixels.mT, labels - 1
        pixels = pixels[:, None] if pixels.dim() == 3 else pixels
        images = ImageSet(pixels.contiguous(), labels, dataset.class_names)
        expected = (info.train if part == "train" else info.test, *info.image_shape)
        if images.pixels.shape != expected:
            raise ValueError(f"the images are {tuple(images.pixels.shape)}, not {expected}")
    except MemoryError:
        raise
    except Exception as error:  # torchvision, numpy and scipy raise many types on damaged files
        raise DataError(
            f"the {part} files of {name} in {folder} are damaged ({summarize(error)}); remove them"
        ) from None
    return images
