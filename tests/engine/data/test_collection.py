from __future__ import annotations

import io
import json
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from rjem_cli.engine.data import archives
from rjem_cli.engine.data.collection import read_collection, read_images, read_stream
from rjem_cli.engine.data.images import convert_channels
from rjem_cli.errors import AbsentError, DataError
from tests.image_files import png, tree, write

FLAT = {f"{i}.png": png(10 * i) for i in range(12)}


@pytest.mark.parametrize("target", ["images", "images.zip", "images.tar", "images.tar.xz"])
def test_flat_and_nested_images_are_sorted_by_name(tmp_path, target):
    flat = read_collection(
        str(write(FLAT, tmp_path / "flat" / target)) if target == "images" else str(write(FLAT, tmp_path / target))
    )
    assert flat.labels is None and flat.pixels.shape == (12, 3, 5, 6)
    assert flat.pixels[:, 0, 0, 0].tolist() == [0, 10, 100, 110, *range(20, 100, 10)]  # by name
    nested = read_collection(str(write(tree(), tmp_path / f"nested-{target}")))
    assert nested.class_names == ("cat", "dog") and nested.labels == ("cat",) * 10 + ("dog",) * 10
    assert nested.class_indices(("dog", "cat")).tolist() == [1] * 10 + [0] * 10
    assert nested.class_indices(("dog", "bird")) is None


def test_folders_that_cut_a_list_into_thousands_are_not_classes(tmp_path):
    edm_samples = {f"{i - i % 1000:06d}/{i:06d}.png": png(i % 250) for i in (0, 5, 1000, 1999, 12000)}
    edm_dataset = {f"{i // 1000:05d}/img{i:08d}.png": png(i % 250) for i in (0, 5, 1000, 1999, 12000)}
    classes = {f"{i % 3:05d}/{i:05d}.png": png(i) for i in range(9)}
    for name, files, labels in (("a", edm_samples, None), ("b", edm_dataset, None), ("c", classes, 9)):
        collection = read_collection(str(write(files, tmp_path / name)))
        assert collection.labels is None if labels is None else len(collection.labels) == labels


def test_a_truncated_stream_is_an_error(tmp_path):
    content = write(FLAT, tmp_path / "x.tar").read_bytes()
    assert len(read_stream(io.BytesIO(content), "standard input")) == 12
    for cut in (len(content) // 2, 3 * 512, 512 * 7 + 100, 0):
        with pytest.raises(DataError, match="standard input is not a complete"):
            read_stream(io.BytesIO(content[:cut]), "standard input")


@pytest.mark.parametrize("damage", [b"\xff" * 512, bytes(1024)])
def test_a_tar_damaged_in_its_middle_is_an_error_and_not_a_smaller_set(tmp_path, damage):
    """tarfile alone takes a bad header for the end of the archive."""
    path = write(FLAT, tmp_path / "x.tar")
    with tarfile.open(path) as archive:
        at = archive.getmembers()[7].offset
    content = path.read_bytes()
    path.write_bytes(content[:at] + damage + content[at + len(damage) :])
    with pytest.raises(DataError, match="after the last readable member is damaged"):
        read_collection(str(path))
    path.write_bytes(content + bytes(20 * 512))  # more zeros, as tar pads its blocks
    assert len(read_collection(str(path))) == 12


def test_broken_links_and_duplicate_names_are_errors(tmp_path):
    folder = write(FLAT, tmp_path / "folder")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match="gone.png is not a file"):
        read_collection(str(folder))
    with tarfile.open(write(FLAT, tmp_path / "x.tar"), "a") as archive:
        info = tarfile.TarInfo("3.png")
        info.size = len(FLAT["3.png"])
        archive.addfile(info, io.BytesIO(FLAT["3.png"]))
    with pytest.raises(DataError, match="contains 3.png twice"):
        read_collection(str(tmp_path / "x.tar"))


def test_the_npz_files_of_other_programs_are_read(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "adm.npz", pixels)
    collection = read_collection(str(tmp_path / "adm.npz"))
    assert collection.labels is None and np.array_equal(collection.pixels.permute(0, 2, 3, 1).numpy(), pixels)
    np.savez_compressed(tmp_path / "labelled.npz", arr_0=pixels, labels=np.array([2, 0, 1, 1, 0]))
    assert read_collection(str(tmp_path / "labelled.npz")).labels == (2, 0, 1, 1, 0)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": np.zeros((3, 4, 4, 3), np.float32)}, "arr_0 is float32"),
        ({"arr_0": np.zeros((3, 3, 4, 4), np.uint8)}, "uint8 \\(N, H, W, C\\)"),
        ({"images": np.zeros((3, 4, 4, 3), np.uint8)}, "no array arr_0"),
        ({"arr_0": np.array([{"a": 1}], dtype=object)}, "pickled objects"),
    ],
)
def test_an_npz_without_images_is_an_error(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_collection(str(tmp_path / "x.npz"))


@pytest.mark.parametrize(
    "shape", ["(5, 32, 32", "(99999999999999999999999, 4, 4, 3)", "(10000000000000, 4, 4, 3)", "0 or"]
)
def test_an_npz_with_a_hostile_header_is_an_error(tmp_path, shape):
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("arr_0.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(100))
    with pytest.raises(DataError, match="x.npz is not a valid .npz"):
        read_collection(str(tmp_path / "x.npz"))


def test_damaged_files_are_named(tmp_path):
    np.savez(tmp_path / "x.npz", np.zeros((9, 8, 8, 3), np.uint8))
    content = (tmp_path / "x.npz").read_bytes()
    for cut in (0, 10, len(content) // 2, len(content) - 30):
        (tmp_path / "x.npz").write_bytes(content[:cut])
        with pytest.raises(DataError, match="x.npz is not a valid .npz"):
            read_collection(str(tmp_path / "x.npz"))
    jpeg = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)).save(jpeg, format="JPEG")
    bad = {"bad.jpg": jpeg.getvalue()[:-60], "odd.png": png(1, size=(7, 5)), "text.png": b"hello"}
    for name, content in bad.items():
        with pytest.raises(DataError, match=name):
            read_collection(str(write({**FLAT, name: content}, tmp_path / name.replace(".", "-"))))
    (tmp_path / "empty").mkdir()
    with pytest.raises(AbsentError, match="holds no images"):
        read_collection(str(tmp_path / "empty"))


def test_invalid_meta_is_an_error_and_meta_of_another_program_is_ignored(tmp_path):
    with pytest.raises(DataError, match="meta.json is not valid JSON"):
        read_collection(str(write({**FLAT, "meta.json": b'{"rjem": '}, tmp_path / "a")))
    for name, content in (("b", json.dumps([1]).encode()), ("c", b'{"a": 1}\n{"a": 2}\n')):
        assert read_collection(str(write({**FLAT, "meta.json": content}, tmp_path / name))).meta is None


def test_a_tar_that_ends_in_a_zip_is_read_as_a_tar(tmp_path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("fish/0.png", png(9))
    path = write({"cat/0.png": png(1), "dog/0.png": png(2), "z.zip": inner.getvalue()}, tmp_path / "x.tar")
    assert read_collection(str(path)).class_names == ("cat", "dog")


def test_long_descriptions_are_passed_over_and_a_long_table_is_refused(tmp_path, monkeypatch):
    path = write({**FLAT, "0.txt": bytes(2**20 + 1)}, tmp_path / "set.zip")
    assert "passed over 1 file (1 .txt)" in read_collection(str(path)).read_summary
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 10**4)
    with pytest.raises(DataError, match=r"labels.csv has \d+ bytes, more than the 10000 allowed; remove it"):
        read_collection(str(write({**FLAT, "labels.csv": bytes(10**4 + 1)}, tmp_path / "b.zip")))


def test_links_in_a_tar_and_hidden_files_are_skipped(tmp_path):
    path = write(
        {**FLAT, ".hidden.png": png(1), "__MACOSX/._0.png": b"x", "grid.png": png(3, (99, 9)), "meta.json": b"{}"},
        tmp_path / "x.tar",
    )
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("link.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    assert len(read_collection(str(path))) == 12


def test_grey_and_colour(tmp_path):
    grey = read_collection(str(write({f"{i}.png": png(i, mode="L") for i in range(3)}, tmp_path / "grey"))).pixels
    assert grey.shape[1] == 1
    coloured = convert_channels(grey, 3, "x")
    assert coloured.shape[1] == 3 and (convert_channels(coloured, 1, "x") == grey).all()
    with pytest.raises(DataError, match="in colour"):
        convert_channels(read_collection(str(write(FLAT, tmp_path / "flat"))).pixels, 1, "x")


def test_images_are_read_in_the_shape_of_a_checkpoint(tmp_path):
    write({"1.png": png(7, mode="L"), "2.png": png(8, mode="L")}, tmp_path / "grey")
    for path, count in ((tmp_path / "grey", 2), (tmp_path / "grey" / "2.png", 1)):
        for channels in (1, 3):
            pixels = read_images(str(path), (channels, 5, 6)).pixels
            assert pixels.shape == (count, channels, 5, 6) and (pixels[-1] == 8).all()
        with pytest.raises(DataError, match="are 6x5; this checkpoint takes 5x6"):
            read_images(str(path), (1, 6, 5))
    write({"1.png": png(7)}, tmp_path / "red")
    with pytest.raises(DataError, match="in colour, but grey images are needed"):
        read_images(str(tmp_path / "red"), (1, 5, 6))


def test_an_npz_of_images_without_pixels_is_an_error(tmp_path):
    np.savez(tmp_path / "x.npz", np.zeros((3, 0, 4, 3), np.uint8))
    with pytest.raises(DataError, match="arr_0 is uint8"):
        read_collection(str(tmp_path / "x.npz"))
