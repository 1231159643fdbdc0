"""Published files are downloaded once, completely, and by one process; data sets are read from small files of the
published form."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import io
import shutil
import tarfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.io import savemat

from rjem_cli.config.training import DataOptions
from rjem_cli.engine.data import downloads
from rjem_cli.engine.data.downloads import (
    CIFAR,
    DATASET_INFO,
    TORCHVISION,
    is_downloaded,
    load_published,
)
from rjem_cli.engine.data.load import load_splits
from rjem_cli.engine.data.remote_file import RemoteFile, fetch_file, sha256_hex
from rjem_cli.errors import AbsentError, DataError, RjemError
from rjem_cli.paths import datasets_dir, weights_dir

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture
def server(monkeypatch):
    """Serves `server.files` (content by path) at `server.url`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        files: ClassVar[dict[str, bytes]] = {}
        requests, delay = 0, 0.0

        def do_GET(self):
            type(self).requests += 1
            time.sleep(self.delay)
            content = self.files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # torchvision first follows redirects, and reads nothing
                self.wfile.write(content or b"")

        def log_message(self, *arguments):
            pass

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    Handler.url = f"http://127.0.0.1:{listener.server_port}"
    monkeypatch.delenv("RJEM_OFFLINE")
    yield Handler
    listener.shutdown()


@pytest.fixture
def weights(server):
    """A published file on the server."""
    content = b"weights" * 1000
    server.files = {"/x.pth": content}
    server.delay = 0.3  # long enough for others to ask too, if nothing holds them back
    return RemoteFile("x.pth", f"{server.url}/x.pth", len(content), sha256_hex(content))


def test_files_are_fetched_once_and_a_damaged_file_is_fetched_again(server, weights):
    content = server.files["/x.pth"]

    def fetch():
        return fetch_file(weights, weights_dir())

    assert fetch() == fetch() == content and server.requests == 1
    cached = weights_dir() / "x.pth"
    cached.write_bytes(content[:500])
    assert fetch() == content == cached.read_bytes() and server.requests == 2
    cached.write_bytes(b"W" + content[1:])
    assert fetch() == content == cached.read_bytes() and server.requests == 3


def test_a_download_that_cannot_be_saved_is_used_with_a_warning(server, weights):
    (weights_dir() / "x.pth").mkdir(parents=True)
    warnings = []
    assert fetch_file(weights, weights_dir(), warn=warnings.append) == server.files["/x.pth"]
    assert len(warnings) == 1 and "cannot write" in warnings[0] and "downloaded again next time" in warnings[0]


@pytest.mark.parametrize(
    "change", [lambda content: content[:-1], lambda content: content + b"x", lambda content: b"W" + content[1:]]
)
def test_a_download_that_is_not_the_published_file_is_not_saved(server, weights, change):
    server.files["/x.pth"] = change(server.files["/x.pth"])
    with pytest.raises(AbsentError, match="not the published file"):
        fetch_file(weights, weights_dir())
    assert not (weights_dir() / "x.pth").exists()


def test_progress_is_reported_and_can_stop_a_download(weights):
    reports = []
    fetch_file(weights, weights_dir(), lambda *report: reports.append(report))
    assert reports[-1] == ("downloading x.pth", weights.size, weights.size)

    def stop(*report):
        raise RjemError("stopped")

    (weights_dir() / "x.pth").unlink()
    with pytest.raises(RjemError, match="stopped"):
        fetch_file(weights, weights_dir(), stop)


def test_without_a_network_the_error_gives_the_reason(monkeypatch):
    gone = RemoteFile("x.pth", "http://127.0.0.1:9/x.pth", 10, "0")
    with pytest.raises(AbsentError, match="RJEM_OFFLINE forbids the download"):
        fetch_file(gone, weights_dir())
    monkeypatch.delenv("RJEM_OFFLINE")
    with pytest.raises(AbsentError, match="cannot download"):
        fetch_file(gone, weights_dir())


def test_four_callers_at_once_download_a_file_once(server, weights):
    """In threads, but each has its own lock on the file, as a process has."""
    with ThreadPoolExecutor(4) as pool:
        contents = list(pool.map(lambda file: fetch_file(file, weights_dir()), 4 * [weights]))
    assert contents == 4 * [server.files["/x.pth"]] and server.requests == 1


def build_cifar(name: str, counts: dict[str, int], class_names: list[str]) -> tuple[bytes, dict[str, np.ndarray]]:
    """(the .tar.gz, records by file name) as CIFAR's page describes them: labels, then planes of red, green, blue."""
    layout, content = CIFAR[name], io.BytesIO()
    random = np.random.default_rng(0)
    records = {
        file: np.concatenate(
            [
                random.integers(0, len(class_names), (count, layout.label_bytes), dtype=np.uint8),
                random.integers(0, 256, (count, 3072), dtype=np.uint8),
            ],
            axis=1,
        )
        for file, count in counts.items()
    }
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        files = {file: part.tobytes() for file, part in records.items()}
        files[layout.names] = ("\n".join(class_names) + "\n\n").encode()
        for file, part in files.items():
            info = tarfile.TarInfo(f"some-folder/{file}")
            info.size = len(part)
            archive.addfile(info, io.BytesIO(part))
    return content.getvalue(), records


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_from_its_binary_version(name, monkeypatch):
    layout = CIFAR[name]
    content, records = build_cifar(name, {**dict.fromkeys(layout.train, 7), layout.test: 3}, ["red fox", "owl", "x"])
    remote = layout.archive._replace(size=len(content), sha256=sha256_hex(content))
    monkeypatch.setitem(downloads.CIFAR, name, layout._replace(archive=remote))
    path = datasets_dir() / name / remote.file_name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    train, test = load_published(name)
    assert train.class_names == ("red_fox", "owl", "x") and len(train) == 7 * len(layout.train) and len(test) == 3
    expected = np.concatenate([records[file] for file in layout.train])
    assert train.labels.tolist() == expected[:, layout.label_bytes - 1].tolist()  # CIFAR-100's first is the coarse one
    first = expected[0, layout.label_bytes :]
    assert train.pixels.shape[1:] == (3, 32, 32) and train.pixels.dtype == torch.uint8
    assert train.pixels[0, 1, 2, 5] == first[1024 + 2 * 32 + 5]  # green, third row, sixth column
    path.write_bytes(content[:-1] + b"x")
    with pytest.raises(AbsentError, match="is damaged, and RJEM_OFFLINE"):
        load_published(name)


# --- data sets that torchvision reads ---


def encode_idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.tobytes()


def build_torchvision_set(name: str, count: int) -> tuple[dict[str, bytes], np.ndarray, np.ndarray]:
    """(contents by file, pixels (2, N, C, H, W) of train and test, published labels (2, N)), in the published form."""
    info, files = DATASET_INFO[name], {}
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (2, count, *info.image_shape), dtype=np.uint8)
    labels = np.stack([np.arange(count), np.arange(count)[::-1]]).astype(np.uint8) % info.classes
    first_label = 1 if name in ("svhn", "emnist", "stl10") else 0
    labels += first_label
    for part in (0, 1):
        if name == "svhn":
            content = io.BytesIO()
            savemat(content, {"X": pixels[part].transpose(2, 3, 1, 0), "y": labels[part][:, None]})
            files[TORCHVISION[name].files[part]] = content.getvalue()
            continue
        images_file, labels_file = TORCHVISION[name].files[2 * part : 2 * part + 2]
        if name == "stl10":  # column by column
            files[images_file] = pixels[part].transpose(0, 1, 3, 2).tobytes()
            files[labels_file] = labels[part].tobytes()
        else:
            images = pixels[part][:, 0].transpose(0, 2, 1) if name == "emnist" else pixels[part][:, 0]
            files[images_file] = encode_idx(images)
            files[labels_file] = encode_idx(labels[part])
    return files, pixels, labels


@pytest.fixture
def tiny(monkeypatch, request):
    """A data set of 30 training and test images, with the checksums and counts that belong to it."""
    from torchvision import datasets

    name = request.param
    files, pixels, labels = build_torchvision_set(name, 30)
    monkeypatch.setitem(downloads.DATASET_INFO, name, DATASET_INFO[name]._replace(train=30, test=30))
    md5 = {Path(file).name: hashlib.md5(content).hexdigest() for file, content in files.items()}
    if name == "svhn":
        parts = {
            part: ["http://127.0.0.1:9", f"{part}_32x32.mat", md5[f"{part}_32x32.mat"]] for part in ("train", "test")
        }
        monkeypatch.setattr(datasets.SVHN, "split_list", parts)
    if name == "stl10":
        train = [[file, md5[file]] for file in ("train_X.bin", "train_y.bin")] + [["unlabeled_X.bin", "0"]]
        monkeypatch.setattr(datasets.STL10, "train_list", train)
        monkeypatch.setattr(datasets.STL10, "test_list", [[file, md5[file]] for file in ("test_X.bin", "test_y.bin")])
    return name, files, pixels, labels


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)


@pytest.mark.parametrize("tiny", TORCHVISION, indirect=True)
def test_torchvision_sets_are_read_from_their_published_files(tiny):
    name, files, pixels, labels = tiny
    assert not is_downloaded(name)
    write_files(datasets_dir() / name, files)
    assert is_downloaded(name)
    splits = load_splits(DataOptions(dataset=name, val_fraction=0))
    for part, images in enumerate((splits.train, splits.test)):
        assert (images.pixels.numpy() == pixels[part]).all()
        expected = labels[part] % 10 if name == "svhn" else labels[part] - (name in ("emnist", "stl10"))
        assert images.labels.tolist() == expected.tolist()
    assert len(splits.class_names) == DATASET_INFO[name].classes


@pytest.mark.parametrize("tiny", TORCHVISION, indirect=True)
def test_damaged_files_of_torchvision_sets_are_named(tiny):
    name, files, _, _ = tiny
    folder = datasets_dir() / name
    for file, content in files.items():
        for damaged in (content[:-40], b"", content + bytes(784), b"\xff" * 50):
            write_files(folder, {**files, file: damaged})
            with pytest.raises(DataError, match=f"files of {name} in .* are damaged"):
                load_published(name)


def test_class_names_can_be_folders_and_words_on_the_command_line():
    for name, dataset in TORCHVISION.items():
        lower_case = {class_name.lower() for class_name in dataset.class_names}
        assert len(lower_case) == len(dataset.class_names) == DATASET_INFO[name].classes
        assert not any(set(class_name) & set("/\\, ") for class_name in dataset.class_names)


def test_the_older_pickled_files_of_mnist_are_not_read():
    from torchvision import datasets

    older = datasets_dir() / "mnist" / "MNIST" / "processed"
    older.mkdir(parents=True)
    for file in ("training.pt", "test.pt"):
        torch.save((torch.zeros(3, 28, 28, dtype=torch.uint8), torch.zeros(3).long()), older / file)
    assert len(datasets.MNIST(datasets_dir() / "mnist")) == 3
    with pytest.raises(AbsentError, match="mnist is not available"):
        load_published("mnist")


@pytest.mark.parametrize("name", DATASET_INFO)
def test_offline_the_error_says_what_to_download_and_where_to_put_it(name):
    with pytest.raises(AbsentError, match=f"{name} is not available: .* RJEM_OFFLINE forbids the download; ") as caught:
        load_published(name)
    url = CIFAR[name].archive.url if name in CIFAR else TORCHVISION[name].url
    assert f"download {url} elsewhere into {datasets_dir() / name}" in str(caught.value)
    assert all(file in str(caught.value) for file in (() if name in CIFAR else TORCHVISION[name].files))
    assert "--data" in str(caught.value)
    assert not (datasets_dir()).exists()


def serve_torchvision_set(server, monkeypatch, name: str, files: dict[str, bytes]) -> None:
    """Put a data set on the server as its authors publish it, and point torchvision there."""
    from torchvision import datasets

    archive = io.BytesIO()
    if name == "svhn":
        parts = {
            part: [f"{server.url}/{part}_32x32.mat", f"{part}_32x32.mat", datasets.SVHN.split_list[part][2]]
            for part in ("train", "test")
        }
        server.files = {f"/{file}": content for file, content in files.items()}
        monkeypatch.setattr(datasets.SVHN, "split_list", parts)
    elif name == "emnist":
        with zipfile.ZipFile(archive, "w") as published:
            for file, content in files.items():
                published.writestr(f"gzip/{Path(file).name}.gz", gzip.compress(content))
        server.files = {"/gzip.zip": archive.getvalue()}
        monkeypatch.setattr(datasets.EMNIST, "url", f"{server.url}/gzip.zip")
        monkeypatch.setattr(datasets.EMNIST, "md5", hashlib.md5(archive.getvalue()).hexdigest())
    elif name == "stl10":
        with tarfile.open(fileobj=archive, mode="w:gz") as published:
            for file, content in {**files, "stl10_binary/unlabeled_X.bin": b"large"}.items():
                info = tarfile.TarInfo(file)
                info.size = len(content)
                published.addfile(info, io.BytesIO(content))
        server.files = {"/stl10_binary.tar.gz": archive.getvalue()}
        monkeypatch.setattr(datasets.STL10, "url", f"{server.url}/stl10_binary.tar.gz")
        monkeypatch.setattr(datasets.STL10, "tgz_md5", hashlib.md5(archive.getvalue()).hexdigest())
    else:
        published = {f"{Path(file).name}.gz": gzip.compress(content) for file, content in files.items()}
        server.files = {f"/{file}": content for file, content in published.items()}
        dataset_class = getattr(datasets, TORCHVISION[name].class_name)
        resources = [(file, hashlib.md5(content).hexdigest()) for file, content in published.items()]
        monkeypatch.setattr(dataset_class, "mirrors", [f"{server.url}/"])
        monkeypatch.setattr(dataset_class, "resources", resources)


@pytest.mark.parametrize("tiny", ["svhn", "fashion-mnist", "emnist", "stl10"], indirect=True)
def test_torchvision_sets_are_downloaded_once_and_quietly(tiny, server, monkeypatch, capfd):
    name, files, pixels, _ = tiny
    serve_torchvision_set(server, monkeypatch, name, files)
    reports = []
    train, _ = load_published(name, lambda *report: reports.append(report))
    assert (train.pixels.numpy() == pixels[0]).all()
    assert {phase for phase, _, _ in reports} == {f"downloading {name}"} and reports[-1][1] == reports[-1][2] > 0
    folder, requests = datasets_dir() / name, server.requests
    stored = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert stored == {*files, f".{name}.lock"}  # no archive, and no unlabeled images
    load_published(name)
    assert server.requests == requests
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("tiny", ["fashion-mnist"], indirect=True)
def test_an_interrupted_download_leaves_nothing_and_starts_again(tiny, server, monkeypatch):
    name, files, pixels, _ = tiny
    serve_torchvision_set(server, monkeypatch, name, files)

    def stop_at_the_third_file(*report):
        if server.requests > 4:  # each file is asked for twice, for redirects first
            raise RjemError("stopped")

    with pytest.raises(RjemError, match="stopped"):
        load_published(name, stop_at_the_third_file)
    folder = datasets_dir() / name
    assert [path.name for path in folder.iterdir()] == [f".{name}.lock"]
    del server.files["/t10k-labels-idx1-ubyte.gz"]
    with pytest.raises(AbsentError, match=f"{name} is not available: cannot download .*404"):
        load_published(name)
    assert [path.name for path in folder.iterdir()] == [f".{name}.lock"]
    serve_torchvision_set(server, monkeypatch, name, files)
    assert (load_published(name)[0].pixels.numpy() == pixels[0]).all()


@pytest.mark.skipif(
    not DEBIAN_FASHION_MNIST.exists(),
    reason=f"reads the real data set in {DEBIAN_FASHION_MNIST}: apt-get install dataset-fashion-mnist",
)
def test_the_real_fashion_mnist_is_read():
    raw = datasets_dir() / "fashion-mnist" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in DEBIAN_FASHION_MNIST.glob("*.gz"):
        with gzip.open(file) as packed, (raw / file.stem).open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    splits = load_splits(DataOptions(dataset="fashion-mnist"))
    assert (len(splits.train) + len(splits.val), len(splits.test)) == (60_000, 10_000)
    assert torch.bincount(splits.test.labels).tolist() == [1000] * 10
    assert splits.class_names[splits.test.labels[0]] == "Ankle-boot"
