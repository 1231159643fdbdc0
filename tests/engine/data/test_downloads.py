"""The published files, read without a pickle: small ones of the same form."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
import torch

from rjem_cli.engine.data import downloads
from rjem_cli.engine.data.downloads import CIFAR, files_of, read_downloaded, read_svhn
from rjem_cli.engine.data.fetch import sha256_of
from rjem_cli.errors import AbsentError


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_offline_and_absent_says_what_to_do(name):
    with pytest.raises(AbsentError, match=f"{name} cannot be had: .* RJEM_OFFLINE forbids the download; ") as told:
        read_downloaded(name)
    assert all(f"{file.url} " in str(told.value) for file in files_of(name)) and "--data" in str(told.value)


def archive_of(name: str, counts: dict[str, int], class_names: list[str]) -> tuple[bytes, dict[str, np.ndarray]]:
    """(the .tar.gz, records by file name) as CIFAR's page describes them: labels, then planes of red, green, blue."""
    layout, content = CIFAR[name], io.BytesIO()
    draws = np.random.default_rng(0)
    records = {
        file: np.concatenate(
            [
                draws.integers(0, len(class_names), (count, layout.label_bytes), dtype=np.uint8),
                draws.integers(0, 256, (count, 3072), dtype=np.uint8),
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
def test_cifar_is_read_from_its_binary_version(name, own_home, monkeypatch):
    layout = CIFAR[name]
    content, records = archive_of(name, {**dict.fromkeys(layout.train, 7), layout.test: 3}, ["red fox", "owl", "x"])
    known = layout.archive._replace(size=len(content), sha256=sha256_of(content))
    monkeypatch.setitem(downloads.CIFAR, name, layout._replace(archive=known))
    place = own_home / "cache" / "datasets" / name / known.file_name
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    train, test = read_downloaded(name)
    assert train.class_names == ("red_fox", "owl", "x") and len(train) == 7 * len(layout.train) and len(test) == 3
    expected = np.concatenate([records[file] for file in layout.train])
    assert train.labels.tolist() == expected[:, layout.label_bytes - 1].tolist()  # CIFAR-100's first is the coarse one
    first = expected[0, layout.label_bytes :]
    assert train.pixels.shape[1:] == (3, 32, 32) and train.pixels.dtype == torch.uint8
    assert train.pixels[0, 1, 2, 5] == first[1024 + 2 * 32 + 5]  # green, third row, sixth column
    place.write_bytes(content[:-1] + b"x")
    with pytest.raises(AbsentError, match="is damaged, and RJEM_OFFLINE"):
        read_downloaded(name)


def test_svhn_is_read_from_its_matlab_files():
    from scipy.io import savemat

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    content = io.BytesIO()
    savemat(content, {"X": pixels, "y": np.array([[1], [10], [9], [2]], dtype=np.uint8)})
    found = read_svhn(content.getvalue())
    assert found.labels.tolist() == [1, 0, 9, 2] and len(found.class_names) == 10
    assert (found.pixels[2, 1].numpy() == pixels[:, :, 1, 2]).all()
