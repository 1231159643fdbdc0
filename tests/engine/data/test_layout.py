"""Splits and classes from folders, tables and sidecars, as people lay them out."""

from __future__ import annotations

import codecs
from pathlib import PurePosixPath

import pytest

from rjem_cli.engine.data.annotations import parse_split
from rjem_cli.engine.data.layout import find_layout


def layout(*names: str, **texts: str | bytes):
    """The layout of image files; `texts` are files, with `__` for a slash and `_` before the suffix."""
    files = {PurePosixPath(name.replace("__", "/")): text for name, text in texts.items()}
    contents = {name: text.encode() if isinstance(text, str) else text for name, text in files.items()}
    return find_layout([PurePosixPath(name) for name in names], contents)


def table(content: str | bytes, name: str = "labels.csv", images: tuple[str, ...] = ("a.png", "b.png")):
    content = content.encode() if isinstance(content, str) else content
    return find_layout([PurePosixPath(image) for image in images], {PurePosixPath(name): content})


@pytest.mark.parametrize(
    ("names", "splits", "labels"),
    [
        (["cat/1.png", "dog/2.png"], ["train", "train"], ["cat", "dog"]),
        (["photos/cat/1.png", "photos/dog/2.png"], ["train", "train"], ["cat", "dog"]),
        (["bus/1.png", "car/1.png", "train/1.png"], ["train"] * 3, ["bus", "car", "train"]),
        (
            ["train/bus/1.png", "train/train/1.png", "test/train/1.png"],
            ["train", "train", "test"],
            ["bus", "train", "train"],
        ),
        (["training_set/cat/1.png", "test_set/cat/2.png"], ["train", "test"], ["cat", "cat"]),
        (["set/Train/cat/1.png", "set/VAL/cat/2.png"], ["train", "val"], ["cat", "cat"]),
        (["train/n01/images/1.png", "train/n02/images/1.png"], ["train", "train"], ["n01", "n02"]),
        (
            ["train/images/cat/1.png", "train/images/dog/1.png", "test/images/cat/2.png"],
            ["train", "train", "test"],
            ["cat", "dog", "cat"],
        ),
        (["cat/train/1.png", "cat/test/2.png", "dog/train/1.png"], ["train", "test", "train"], ["cat", "cat", "dog"]),
        (["test/cat/1.png", "test/dog/1.png"], ["test", "test"], ["cat", "dog"]),
    ],
)
def test_classes_and_splits_come_from_folders(names, splits, labels):
    found = layout(*names)
    assert (list(found.splits), list(found.labels), found.problem) == (splits, labels, "")


def test_images_of_val_and_test_without_class_folders_have_no_class_and_are_counted():
    found = layout("train/n01/images/1.png", "train/n02/images/2.png", "val/images/3.png", "test/4.png", "test/5.png")
    assert found.labels == ("n01", "n02", None, None, None) and not found.problem
    assert found.notes == ("images without a class: test 2, val 1",)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["1.png", "cat/2.png"], "1.png lies in no class folder"),
        (["cat/1.png", "dog/new/2.png"], "cat/1.png and dog/new/2.png lie at different depths"),
        (["train/1.png", "test/2.png"], "train/1.png lies in no class folder"),
        (["a/cat/1.png", "a/dog/1.png", "b/cat/1.png", "b/dog/1.png"], "a and b both contain cat and dog"),
        (["extra/cat/1.png", "extra/dog/1.png", "train/cat/1.png", "train/dog/1.png"], "extra and train both contain"),
        (["00000/img00000000.png", "00001/img00001000.png"], "the numbered folders are not classes"),
        (["train/cat.0.jpg", "test1/1.jpg"], "lies in no class folder"),
        (
            ["x/train/good/1.png", "x/test/bad/1.png", "x/truth/bad/1.png"],
            "test and train look like splits, but truth lies beside them",
        ),
    ],
)
def test_folders_that_could_be_read_in_two_ways_give_no_classes_and_an_example(names, problem):
    found = layout(*names)
    assert problem in found.problem and "; give class folders, such as" in found.problem
    assert set(found.labels) == {None}


@pytest.mark.parametrize(
    "name",
    ["train", "Training", "train_set", "trainset", "training-data", "images_train", "train2017", "trainA", "trainval"],
)
def test_the_names_of_splits_are_understood(name):
    assert parse_split(name) == "train" and parse_split(f"{name}_cats") == ""


@pytest.mark.parametrize("name", ["trains", "data", "cat", "validator", "train_cat", "images", ""])
def test_other_names_are_no_splits(name):
    assert parse_split(name) == ""


CATS = ("cat/a.png", "cat/b.png", "dog/c.png")
CSV = "file,class\na.png,cat\nb.png,Äffchen\n"


@pytest.mark.parametrize(
    "content",
    [
        CSV,
        codecs.BOM_UTF8 + CSV.encode(),
        CSV.encode("utf-16"),
        CSV.encode("cp1252"),
        CSV.replace("\n", "\r\n"),
        CSV.replace(",", ";"),
        CSV.replace(",", "\t"),
        "sep=;\n" + CSV.replace(",", ";"),
        CSV.replace("a.png", '"a.png"').replace("cat", '"cat"'),
        CSV.replace("file,class", "File , Class"),
        CSV.replace("file,class", "image_id,label").replace(".png", ""),
        CSV.replace("a.png", ".\\a.png"),
        CSV.replace("Ä", "A\u0308"),
        CSV + ",\n\n",
    ],
)
def test_a_table_is_read_as_spreadsheets_save_it(content):
    found = table(content)
    assert found.labels == ("cat", "Äffchen") and not found.notes and not found.problem


def test_the_table_of_rjem_names_classes_and_its_samples_without_a_class_have_none():
    assert table("file,label,class,seed\na.png,0,cat,0\nb.png,1,dog,1\n").labels == ("cat", "dog")
    assert table("file,label,class,seed\na.png,-1,none,0\nb.png,-1,none,1\n").labels == (None, None)
    assert table("file,label,class\na.png,-1,cat\nb.png,1,dog\n").labels == ("cat", "dog")  # another program's
    assert table("file,label\na.png,-1\nb.png,1\n").labels == ("-1", "1")


def test_a_table_that_cannot_be_used_is_named():
    assert table("x,y\n1,2\n").notes == ("labels.csv gives no classes: it needs a column `file` and a column `class`",)
    found = table("file,class\na.png,cat\nb.png,dog\nc.png,dog\nd.png,cat\n")
    assert found.notes == ("missing files of labels.csv: 2, such as c.png",) and found.labels == ("cat", "dog")
    for rows in ("a.png,cat\n", "a.png,cat\nb.png\n"):  # the second is cut off
        assert table(f"file,class\n{rows}").problem == "b.png has no class, but other images have one"
    found = table("file,class\nx.png,cat\n", images=("images/a.png", "images/b.png"))
    assert "missing files of labels.csv: 1, such as x.png" in found.problem


def test_an_image_with_two_classes_is_named():
    found = table("file,class\na.png,cat\nb.png,dog\na.png,dog\n")
    assert found.problem == "a.png has two classes in labels.csv, cat and dog"
    assert found.labels == (None, "dog")


def test_a_table_of_some_images_is_noted():
    images = ("cat/a.png", "cat/b.png", "dog/a.png")
    found = table("file,class\na.png,zebra\n", "cat/labels.csv", images)
    assert found.labels == ("zebra", "cat", "dog") and found.notes == ("1 of 3 images have their class from a table",)


@pytest.mark.parametrize("name", ["c\x0bat", "d\u2028og", "cat\nbig", "a/b", "../x", "test"])
def test_a_class_is_called_as_the_table_says(name):
    assert table(f'file,class\na.png,"{name}"\nb.png,owl\n').labels == (name, "owl")


def test_a_table_in_a_split_folder_gives_the_split():
    found = table("file,class\na.png,cat\n", "test/labels.csv", ("test/a.png", "train/cat/b.png"))
    assert found.splits == ("test", "train") and found.labels == ("cat", "cat") and found.has_splits


@pytest.mark.parametrize("column", ["split", "Set", "subset", "partition"])
def test_a_table_can_name_splits(column):
    found = table(f"file,class,{column}\na.png,cat,train\nb.png,cat,Validation\n")
    assert found.splits == ("train", "val") and found.has_splits and not found.notes
    names = ("cat/a.png", "dog/b.png")  # classes from folders
    found = table(f"file,{column}\ncat/a.png,train\ndog/b.png,test\n", images=names)
    assert found.splits == ("train", "test") and found.labels == ("cat", "dog") and not found.problem


def test_splits_of_a_table_that_are_not_read_are_noted():
    found = table("file,class,split\na.png,cat,fold1\nb.png,dog,fold2\n")
    assert found.splits == ("train", "train") and found.labels == ("cat", "dog")
    assert found.notes == ("the splits of labels.csv are ignored: none is train, val or test (such as fold1)",)


def test_images_in_other_splits_are_left_out_and_counted():
    images = tuple(f"{i}.png" for i in range(4))
    found = table("file,class,split\n0.png,a,train\n1.png,b,train\n2.png,a,holdout\n3.png,b,\n", images=images)
    assert found.splits == ("train", "train", "holdout", "none") and not found.problem
    assert found.notes == ("left out of training and tests by labels.csv: 2, such as split holdout",)


def test_a_row_with_folders_never_describes_an_image_of_other_folders():
    images = ("siteA/1.png", "siteB/2.png", "siteB/3.png")
    found = table("file,class\nsiteA/1.png,a\nsiteA/2.png,a\nsiteB/3.png,b\n", images=images)
    assert found.labels == ("a", "siteB", "b") and "missing files of labels.csv: 1, such as siteA/2.png" in found.notes
    found = table("file,class\ndata/sitea/1.PNG,a\nsiteB/2,b\n", images=images[:2])  # an outer folder, no suffix
    assert found.labels == ("a", "b")


def test_a_path_on_another_machine_is_found_by_its_end():
    rows = "file,class\n/d/cat/1.png,a\n/d/cat/2.png,b\n"
    found = table(rows, images=("dog/1.png", "cat/2.png"))  # dog/1.png is another image
    assert found.labels == ("dog", "b") and "missing files of labels.csv: 1, such as d/cat/1.png" in found.notes
    assert table(rows, images=("x/1.png", "x/2.png")).labels == ("a", "b")


@pytest.mark.parametrize("name", ["/", "./", ".", "..", "\\"])
def test_a_row_that_names_no_file_is_ignored(name):
    assert table(f"file,class\na.png,x\n{name},z\nb.png,y\n").labels == ("x", "y")


def test_an_empty_column_does_not_hide_another():
    assert table("file,class,label\na.png,,x\nb.png,,y\n").labels == ("x", "y")
    found = table("file,split\ncat/a.png,train\ncat/b.png,\ndog/c.png,test\n", images=CATS)
    assert found.splits == ("train", "none", "test") and "left out of training and tests" in found.notes[0]


def test_jsonl_is_cut_at_line_feeds_only():
    rows = (
        '{"file_name": "cat/b.png", "split": "test", "text": "a\u2028b"}\n{"file_name": "cat/a.png", "split": "train"}'
    )
    assert table(rows, "metadata.jsonl", CATS).splits == ("train", "test", "train")


def test_the_folder_of_images_below_a_split_is_no_class_of_those_without_a_row():
    images = ("train/images/1.png", "train/images/2.png", "train/images/3.png", "test/images/4.png")
    found = table("file,class\n1.png,a\n2.png,b\n4.png,a\n", images=images)
    assert found.problem == "train/images/3.png has no class, but other images have one"


def test_a_number_and_its_text_are_one_class():
    names = [PurePosixPath("a.png")]
    texts = {
        PurePosixPath("dataset.json"): b'{"labels": [["a.png", 6]]}',
        PurePosixPath("labels.csv"): b"file,class\na.png,6",
    }
    assert not find_layout(names, texts).problem


def test_a_sidecar_of_the_whole_name_comes_before_that_of_the_first_word():
    assert layout("1.png", "1.0.png", **{"1.cls": "3", "1.0.cls": "4"}).labels == (3, 4)


def test_a_table_beside_images_describes_these_only():
    images = ("train/1.png", "train/2.png", "test/3.png")
    found = table("file,class\n1.png,a\n2.png,b\n3.png,a\n", "train/metadata.csv", images)
    assert found.labels == ("a", "b", None) and found.splits == ("train", "train", "test")
    assert table("file,class\n1.png,a\n2.png,b\n3.png,a\n", "info/labels.csv", images).labels == ("a", "b", "a")


def test_a_name_of_several_images_is_called_so():
    images = ("train/1.png", "test/1.png")
    found = table("file,class\n1,a\n", images=images)
    assert "files of labels.csv that fit several images: 1, such as 1" in found.notes


def test_class_folders_of_one_split_stay_beside_the_table_of_another():
    images = ("train/1.png", "train/2.png", "test/a/3.png", "test/b/4.png")
    found = table("file,class\n1.png,a\n2.png,b\n", "train/metadata.csv", images)
    assert found.labels == ("a", "b", "a", "b") and found.splits == ("train", "train", "test", "test")


def test_a_class_folder_called_test_is_no_split_because_of_a_table():
    images = ("control/1.png", "test/2.png", "control/3.png", "test/4.png")
    found = table("file,class\n1.png,a\n2.png,b\n3.png,a\n4.png,b\n", images=images)
    assert found.labels == ("a", "b") * 2 and not found.has_splits


def test_numbers_and_names_of_classes_are_all_names():
    names = ("0/a.png", "1/b.png", "0/c.png")
    assert layout(*names, **{"a.cls": "1"}).labels == ("0", "1", "0")  # of no image here
    assert layout(*names, **{"0__a.cls": "1"}).labels == ("1", "1", "0")


def test_a_sidecar_describes_no_other_image_of_the_same_first_word():
    images = tuple(f"img.{i}.png" for i in range(3))
    found = layout(*images, **{"img.0.cls": "4", "img.1.cls": "7"})
    assert found.labels == (4, 7, None)


def test_an_image_in_two_splits_is_named():
    found = table("file,class,split\na.png,cat,train\nb.png,dog,train\na.png,cat,test\n")
    assert found.problem == "a.png is in two splits in labels.csv, train and test"
    images = ("train/cat/a.png", "test/cat/b.png")
    found = table("file,split\ntrain/cat/a.png,test\n", images=images)
    assert found.problem == "train/cat/a.png is in the split test by a table, but train by its folder"


def test_edms_numbered_folders_have_the_classes_of_dataset_json():
    images = ("00000/img00000000.png", "00000/img00000001.png", "00001/img00001000.png")
    rows = ", ".join(f'["{name}", {label}]' for name, label in zip(images, (6, 0, 6)))
    found = table(f'{{"labels": [{rows}]}}', "dataset.json", images)
    assert found.labels == (6, 0, 6) and not found.notes and not found.problem
    for useless in ("null", "[]", '[["00000/img00000000.png", [0.5, 0.1]]]', '{"a": 1}', "[[1, 2]]"):
        found = table(f'{{"labels": {useless}}}', "dataset.json", images)
        assert set(found.labels) == {None} and "the numbered folders are not classes" in found.problem
        assert "dataset.json gives no classes" in found.notes[0]


def test_hugging_faces_metadata_jsonl_is_read():
    rows = '{"file_name": "a.png", "label": "cat"}\n\nnot json\n{"file_name": "b.png", "label": "dog", "text": "x"}\n'
    assert table(rows, "metadata.jsonl").labels == ("cat", "dog")
    assert table('{"file_name": "a.png", "label": 0}\n', "metadata.jsonl", ("a.png",)).labels == ("0",)


def test_tiny_imagenets_annotations_are_read():
    names = ("train/n01/images/a.png", "train/n02/images/b.png", "val/images/v.png")
    found = table("v.png\tn02\t0\t0\t31\t31\n", "val/val_annotations.txt", names)
    assert found.labels == ("n01", "n02", "n02") and found.splits == ("train", "train", "val")


def test_a_table_finds_images_by_their_name_alone_and_in_any_case():
    images = ("images/A.JPG", "images/b.png")
    assert table("file,class\na.jpg,cat\nC:\\me\\b.png,dog\n", images=images).labels == ("cat", "dog")
    images = ("x/a.png", "y/a.png")
    assert table("file,class\na.png,cat\n", images=images).labels == ("x", "y")  # which of the two is unknown


def test_images_that_only_lack_a_class_in_test_are_no_training_class():
    found = table(
        "file,class\na.png,cat\nb.png,dog\n", "train/metadata.csv", ("train/a.png", "train/b.png", "test/c.png")
    )
    assert found.labels == ("cat", "dog", None) and found.splits == ("train", "train", "test") and not found.problem
    assert "images without a class: test 1" in found.notes


@pytest.mark.parametrize("suffix", ["json", "txt"])
def test_class_folders_come_before_descriptions(suffix):
    text = '{"category": "reddit"}' if suffix == "json" else "a photo"
    names = [PurePosixPath(f"{name}/{i}.png") for name in ("cat", "dog") for i in range(3)]
    texts = {name.with_suffix(f".{suffix}"): text.encode() for name in names}
    assert find_layout(names, texts).labels == ("cat",) * 3 + ("dog",) * 3


def test_thousands_of_classes_are_arranged_at_once():
    names = [PurePosixPath(f"{label}/{i}.png") for label in range(10_000) for i in range(2)]
    assert len(set(find_layout(names, {}).labels)) == 10_000


@pytest.mark.parametrize(
    ("images", "texts", "labels"),
    [
        (["0.png", "1.png"], {"0.cls": "3", "1.cls": "12\n"}, (3, 12)),
        (["0.png", "1.png"], {"0.cls": "cat", "1.cls": "3"}, ("cat", "3")),
        (["0.input.png", "1.input.png"], {"0.cls": "3", "1.cls": "1"}, (3, 1)),
        (["a.v2.png", "a.v3.png"], {"a.v2.cls": "1", "a.v3.cls": "2"}, (1, 2)),
        ([f"{i}.png" for i in range(4)], {f"{i}.txt": "cat dog".split()[i % 2] for i in range(4)}, ("cat", "dog") * 2),
        ([f"{i}.png" for i in range(4)], {f"{i}.json": f'{{"label": {i % 2}}}' for i in range(4)}, (0, 1, 0, 1)),
        ([f"{i}.png" for i in range(4)], {f"{i}.txt": f"a photo of {i}" for i in range(4)}, (None,) * 4),
    ],
)
def test_sidecars_of_webdataset_give_classes(images, texts, labels):
    contents = {PurePosixPath(name): text.encode() for name, text in texts.items()}
    assert find_layout([PurePosixPath(name) for name in images], contents).labels == labels
