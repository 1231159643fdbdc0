import contextlib
import io
import os
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from rjem_cli.config.training import DataOptions
from rjem_cli.engine.data import collection
from rjem_cli.engine.data.collection import read_collection, read_collection_cached
from rjem_cli.engine.data.load import load_splits
from rjem_cli.errors import AbsentError, DataError
from tests.image_files import png, tree, write


def read_class_folders(location, image_size=None):
    return read_collection_cached(location, image_size).group_by_split()


@pytest.mark.parametrize("target", ["images", "images.zip", "images.tar", "images.tar.xz"])
def test_folders_and_archives_give_the_same_images(tmp_path, target):
    images = read_class_folders(str(write(tree(), tmp_path / target)))["train"]
    assert images.class_names == ("cat", "dog")
    assert images.pixels.shape == (20, 3, 5, 6)
    assert images.labels.tolist() == [0] * 10 + [1] * 10
    assert images.pixels[:, 0, 0, 0].tolist() == [*range(10), *range(100, 110)]


def test_the_digest_does_not_depend_on_the_order_in_the_archive(tmp_path):
    files = tree()
    backwards = dict(reversed(files.items()))
    paths = [write(files, tmp_path / "a.tar"), write(backwards, tmp_path / "b.tar")]
    first, second = (read_class_folders(str(path))["train"].digest() for path in paths)
    assert first == second


def test_grey_images_have_one_channel_or_three_beside_colour_images(tmp_path):
    assert read_class_folders(str(write(tree(mode="L"), tmp_path / "grey")))["train"].pixels.shape[1] == 1
    mixed = {**tree(), "cat/grey.png": png(77, mode="L")}
    pixels = read_class_folders(str(write(mixed, tmp_path / "mixed")))["train"].pixels
    assert pixels.shape[1] == 3
    assert (pixels == 77).all(dim=3).all(dim=2).all(dim=1).sum() == 1


@pytest.mark.parametrize(
    ("folder", "split"), [("", "train"), ("./", "train"), ("out/samples/", "train"), ("test/", "test")]
)
@pytest.mark.parametrize("target", ["samples", "samples.tar", "samples.zip"])
def test_samples_of_rjem_have_the_classes_of_their_table(tmp_path, target, folder, split):
    table = b"file,label,class,seed\n000001.png,1,dog,1\n000000.png,0,cat,0\n"
    files = {"grid.png": png(1, size=(50, 60)), "000000.png": png(7), "000001.png": png(9), "labels.csv": table}
    location = write({f"{folder}{name}": content for name, content in files.items()}, tmp_path / target)
    images = read_class_folders(str(location))[split]
    assert images.class_names == ("cat", "dog") and images.labels.tolist() == [0, 1]
    assert images.pixels[:, 0, 0, 0].tolist() == [7, 9]


@pytest.mark.parametrize(
    "table",
    [b"", b"a,b\n1,2\n", b"file,label,class\n000000.png,0,cat\n", b"file,label,class,seed\n000001.png,-1,none,1\n"],
)
def test_without_a_class_for_each_image_a_flat_folder_is_refused(tmp_path, table):
    files = {"000000.png": png(7), "000001.png": png(9), "labels.csv": table}
    with pytest.raises(DataError, match=r"00000[01].png (lies in no class folder|has no class)"):
        read_class_folders(str(write(files, tmp_path / "samples")))


def test_an_image_with_the_name_of_a_figure_is_kept_where_no_table_is(tmp_path):
    images = read_class_folders(str(write({**tree(), "cat/grid.png": png(1)}, tmp_path / "images")))["train"]
    assert images.labels.tolist().count(0) == 11


def test_a_figure_beside_class_folders_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"grid.png lies in no class folder"):
        read_class_folders(str(write({**tree(), "grid.png": png(1)}, tmp_path / "images")))


def test_splits_named_by_folders_are_kept(tmp_path):
    files = {f"set/{split}/{name}": content for split in ("train", "val", "test") for name, content in tree(4).items()}
    splits = load_splits(DataOptions(data=str(write(files, tmp_path / "set.tar"))))
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [8, 8, 8]


def test_a_second_archive_can_be_the_test_set(tmp_path):
    train = write(tree(), tmp_path / "train.zip")
    test = write({f"test/{name}": content for name, content in tree(3).items()}, tmp_path / "test.tar")
    splits = load_splits(DataOptions(data=str(train), test_data=str(test), val_fraction=0))
    assert (len(splits.train), len(splits.test)) == (20, 6)


@pytest.mark.parametrize(
    ("parts", "count"), [(("train", "val"), 6), (("val", "test"), 8), (("train", "val", "test"), 8), ((), 10)]
)
def test_test_data_is_never_a_training_part(tmp_path, parts, count):
    sizes = {"train": 5, "val": 3, "test": 4}
    files = {f"{part}/{name}": content for part in parts for name, content in tree(sizes[part]).items()} or tree(5)
    train, test = write(tree(), tmp_path / "a.zip"), write(files, tmp_path / "b.tar")
    splits = load_splits(DataOptions(data=str(train), test_data=str(test), val_fraction=0))
    assert len(splits.test) == count


def test_training_images_alone_are_refused_as_test_data(tmp_path):
    train = write({f"train/{name}": content for name, content in tree().items()}, tmp_path / "a.zip")
    with pytest.raises(DataError, match="has training images only"):
        load_splits(DataOptions(data=str(train), test_data=str(train)))


def test_images_in_training_and_test_are_counted(tmp_path):
    test = {**{f"cat/{i}.png": png(i) for i in range(3)}, "dog/1.png": png(199)}
    paths = write(tree(), tmp_path / "a.zip"), write(test, tmp_path / "b.zip")
    splits = load_splits(DataOptions(data=str(paths[0]), test_data=str(paths[1]), val_fraction=0))
    assert splits.read_summary.endswith("training images that are also in test: 3")
    assert "training images" not in load_splits(DataOptions(data=str(paths[0]))).read_summary


@pytest.mark.parametrize(
    "names",
    [
        ("photos\\cat\\1.png", "photos\\dog\\1.png"),
        ("./cat/1.png", "./dog/1.png"),
        ("/home/me/cat/1.png", "/home/me/dog/1.png"),
        ("../cat/1.png", "../dog/1.png"),
        ("C:\\me\\cat\\1.png", "C:\\me\\dog\\1.png"),
        ("a//cat/./1.png", "a//dog/./1.png"),
    ],
)
@pytest.mark.parametrize("target", ["images.zip", "images.tar"])
def test_harmless_odd_names_in_archives_are_read(tmp_path, names, target):
    images = read_class_folders(str(write({name: png(i) for i, name in enumerate(names)}, tmp_path / target)))["train"]
    assert images.class_names == ("cat", "dog") and len(images) == 2


@pytest.mark.parametrize("target", ["images", "images.zip", "images.tar"])
def test_one_class_whatever_bytes_spell_its_name(tmp_path, target):
    names = ("Äffchen/1.png", "A\u0308ffchen/2.png", "dog/3.png")
    images = read_class_folders(str(write({name: png(i) for i, name in enumerate(names)}, tmp_path / target)))["train"]
    assert sorted(images.class_names) == ["dog", "Äffchen"] and images.labels.bincount().sum() == 3


@pytest.mark.parametrize(
    ("head", "kind"),
    [(b"Rar!\x1a\7", "a .rar file"), (b"7z\xbc\xaf\x27\x1c", "a .7z file"), (b"\x28\xb5\x2f\xfd", "zstd")],
)
def test_other_archives_are_named(tmp_path, head, kind):
    (tmp_path / "x.tar").write_bytes(head + bytes(600))
    with pytest.raises(DataError, match=f"{kind}, which rjem does not read; unpack it first"):
        read_collection(str(tmp_path / "x.tar"))


def test_a_zip_that_does_not_say_that_its_names_are_utf8(tmp_path):
    path = write({"Äffchen/1.png": png(1), "dog/1.png": png(2)}, tmp_path / "images.zip")
    content, flag = path.read_bytes(), (0x800).to_bytes(2, "little")
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        for start in [i for i in range(len(content)) if content.startswith(signature, i)]:
            assert content[start + offset : start + offset + 2] in (flag, b"\0\0")
            content = content[: start + offset] + b"\0\0" + content[start + offset + 2 :]
    path.write_bytes(content)
    assert "Äffchen" in read_class_folders(str(path))["train"].class_names


def test_hidden_files_links_and_other_files_are_skipped(tmp_path):
    extra = {"__MACOSX/cat/._00.png": b"x", "cat/.hidden.png": b"x", "cat/notes.txt": b"x"}
    folder = write({**tree(), **extra}, tmp_path / "images")
    assert len(read_class_folders(str(folder))["train"]) == 20
    archive = tmp_path / "linked.tar"
    write(tree(), archive)
    with tarfile.open(archive, "a") as appended:
        link = tarfile.TarInfo("cat/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        appended.addfile(link)
    assert len(read_class_folders(str(archive))["train"]) == 20


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"cat/odd.png": png(1, size=(9, 9))}, r"dog/00.png is 6x5, the images before it are 9x9|cat/odd.png is 9x9"),
        ({"dog/torn.png": png(1)[:40]}, r"dog/torn.png is corrupt or not an image"),
        ({"dog/text.png": b"no image at all"}, r"dog/text.png is corrupt or not an image"),
        ({"dog/empty.png": b""}, r"dog/empty.png is corrupt or not an image"),
        ({"loose.png": png(1)}, r"loose.png lies in no class folder"),
    ],
)
@pytest.mark.parametrize("target", ["images", "images.zip", "images.tar.xz"])
def test_bad_images_are_named(tmp_path, files, message, target):
    with pytest.raises(DataError, match=message):
        read_class_folders(str(write({**tree(), **files}, tmp_path / target)))


def test_sixteen_bit_images_are_refused(tmp_path):
    content = io.BytesIO()
    Image.fromarray(np.full((5, 6), 40_000, dtype=np.uint16)).save(content, format="PNG")
    with pytest.raises(DataError, match="deep.png has more than 8 bits"):
        read_class_folders(str(write({"cat/deep.png": content.getvalue()}, tmp_path / "images")))


def test_colours_of_sixteen_bits_are_refused(tmp_path):
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)  # 2x1 pixels, 16 bits, RGB
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(13))), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    with pytest.raises(DataError, match=r"deep.png has more than 8 bits"):
        read_class_folders(str(write({"cat/deep.png": content}, tmp_path / "images")))


def test_class_folders_behind_links_are_read_once(tmp_path):
    real = write(tree(), tmp_path / "real")
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("cat", "dog"):
        (linked / name).symlink_to(real / name)
    (real / "cat" / "loop").symlink_to(real)
    assert len(read_class_folders(str(linked))["train"]) == 20


def test_a_class_behind_two_links_has_the_name_of_the_real_folder(tmp_path):
    folder = write(tree(), tmp_path / "images")
    for name in ("aaa", "kitty"):
        (folder / name).symlink_to(folder / "cat")
    images = read_collection(str(folder))
    assert images.class_names == ("cat", "dog") and images.read_summary.endswith(
        "passed over 2 files (2 folders linked twice)"
    )


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    folder, scandir = write(tree(), tmp_path / "images"), os.scandir

    def refuse(path):
        if os.fspath(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # as root may read everything
    with pytest.raises(DataError, match=r"cannot read .*/images/dog: Permission denied"):
        read_collection(str(folder))


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="neither a folder nor a file"):
        read_class_folders(str(tmp_path / "pipe"))


def test_a_missing_or_empty_folder_is_an_absent_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(AbsentError, match="does not exist"):
        read_class_folders(str(tmp_path / "nowhere"))
    with pytest.raises(AbsentError, match="holds no images"):
        read_class_folders(str(tmp_path / "empty"))


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_a_compressed_tar_is_whole_or_refused(tmp_path, mode):
    """Wherever it is cut, and whichever byte is damaged."""
    path = tmp_path / f"images.tar.{mode}"
    with tarfile.open(path, f"w:{mode}") as archive:
        for name, content in tree(3).items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    whole = path.read_bytes()
    assert len(read_collection(str(path))) == 6
    for cut in range(10, len(whole) - 1, 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError):
            read_collection(str(path))
        path.write_bytes(whole[:cut] + bytes([whole[cut] ^ 1]) + whole[cut + 1 :])
        with contextlib.suppress(DataError):
            assert len(read_collection(str(path))) == 6


@pytest.mark.parametrize("name", ["archive.tar.xz", "archive.zip", "archive.tar"])
def test_a_truncated_archive_is_named(tmp_path, name):
    archive = write(tree(), tmp_path / name)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        read_class_folders(str(archive))


def test_test_classes_may_come_in_another_order(tmp_path):
    train = write({f"{label}/0.png": png(label) for label in range(12)}, tmp_path / "train")  # 0, 1, 10, 11, 2, ...
    files = {f"{label}.png": png(100 + label) for label in range(12)}
    test = write(files | {f"{label}.cls": b"%d" % label for label in range(12)}, tmp_path / "test")  # 0, 1, 2, ...
    splits = load_splits(DataOptions(data=str(train), test_data=str(test), val_fraction=0.0))
    assert splits.test.class_names == splits.class_names
    names = [splits.class_names[label] for label in splits.test.labels.tolist()]
    assert names == [str(pixel - 100) for pixel in splits.test.pixels[:, 0, 0, 0].tolist()]


def test_train_and_test_need_the_same_size_and_classes(tmp_path):
    train = write(tree(), tmp_path / "train")
    smaller = write({"cat/0.png": png(1, (4, 4)), "dog/0.png": png(1, (4, 4))}, tmp_path / "small")
    with pytest.raises(DataError, match="convert one of them"):
        load_splits(DataOptions(data=str(train), test_data=str(smaller)))
    others = write({"cat/0.png": png(1), "emu/0.png": png(1)}, tmp_path / "others")
    with pytest.raises(DataError, match="different classes: dog, emu"):
        load_splits(DataOptions(data=str(train), test_data=str(others)))


def test_an_archive_is_read_once_and_again_after_it_changed(tmp_path, monkeypatch):
    reads, collect = [], collection.collect_members
    monkeypatch.setattr(collection, "collect_members", lambda *given: reads.append(given) or collect(*given))
    path = write(tree(4), tmp_path / "images.zip")
    first, second = (read_class_folders(str(path)) for _ in range(2))
    assert len(reads) == 1 and first["train"].digest() == second["train"].digest()
    write(tree(3), path)
    assert len(read_class_folders(str(path))["train"]) == 6 and len(reads) == 2


def test_images_of_any_size_are_cropped_to_their_central_square_and_resized(tmp_path):
    gradient = np.tile(np.arange(0, 240, 2, dtype=np.uint8), (40, 1))  # 120 x 40: grey levels rise from left to right
    files = {
        "cat/wide.png": encode(gradient),
        "dog/high.png": encode(gradient.T.copy()),
        "dog/one.png": png(9, (1, 999)),
    }
    images = read_class_folders(str(write(files, tmp_path / "set")), image_size=10)["train"]
    assert images.pixels.shape == (3, 3, 10, 10)
    wide, high, thin = images.pixels[:, 0].int()
    assert wide[0, 0] == pytest.approx(83, abs=3) and wide[0, -1] == pytest.approx(155, abs=3)  # 40 central columns
    assert (wide == high.T).all() and (thin == 9).all()


def test_without_a_size_the_error_for_mixed_sizes_names_the_option(tmp_path):
    files = {"cat/a.png": png(1), "cat/b.png": png(1, (8, 9))}
    with pytest.raises(DataError, match=r"b\.png is 8x9, .*add --image-size 5"):
        read_class_folders(str(write(files, tmp_path / "set")))


def test_built_in_sets_npz_files_and_folders_are_resized_alike(tmp_path):
    digits = load_splits(DataOptions(dataset="digits", val_fraction=0)).test
    resized = load_splits(DataOptions(dataset="digits", val_fraction=0, image_size=6)).test
    files = {f"c/{i:04d}.png": encode(image[0].numpy()) for i, image in enumerate(digits.pixels)}
    from_files = read_class_folders(str(write(files, tmp_path / "set.tar")), image_size=6)["train"]
    np.savez(tmp_path / "set.npz", arr_0=digits.pixels.permute(0, 2, 3, 1).numpy())
    assert resized.pixels.shape[1:] == (1, 6, 6) and (resized.labels == digits.labels).all()
    assert (from_files.pixels == resized.pixels).all()
    assert (read_collection(str(tmp_path / "set.npz"), image_size=6).pixels == resized.pixels).all()


def encode(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(array).save(content, format="PNG")
    return content.getvalue()
