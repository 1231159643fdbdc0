"""Classes and splits from files beside the images: tables such as labels.csv, EDM's dataset.json, and WebDataset's
files of the same key."""

import codecs
import contextlib
import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from rjem_cli.engine.data.archives import clean_name

LABELS_NAME, RJEM_HEADER = "labels.csv", ["file", "label", "class", "seed"]  # as rjem writes it
EDM_TABLE = "dataset.json"  # {"labels": [["00000/img00000000.png", 6], ...]}, as StyleGAN's, too
TINY_IMAGENET_TABLE = "val_annotations.txt"  # without a header: file, class, box
# The metadata files are Hugging Face's
TABLE_NAMES = (LABELS_NAME, "labels.tsv", "metadata.csv", "metadata.jsonl", EDM_TABLE, TINY_IMAGENET_TABLE)
FILE_COLUMNS = ("file", "filename", "file_name", "image", "image_name", "img", "path", "image_path", "id", "image_id")
CLASS_COLUMNS = ("class", "class_name", "classname", "label_name", "category", "label", "target")
SPLIT_COLUMNS = ("split", "set", "subset", "partition")
JSON_KEYS = ("class_name", "label_name", "class", "cls", "label", "category")
SIDECARS = (".cls", ".json", ".txt")  # of WebDataset, the first that has a class decides
LONGEST_CLASS = 100  # characters of a class in a .txt; longer texts are captions
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
SPLIT_FILLERS = {"set", "data", "dataset", "images", "image", "imgs", "img", "split", "folder"}

Label = str | int | None
Texts = Mapping[PurePosixPath, bytes]  # contents of tables and sidecars


class Annotations(NamedTuple):
    """What files say of some images: their classes and splits. `used`: those files. An image whose class is
    contradictory has the label None, and `problem` names it."""

    labels: dict[PurePosixPath, Label]
    splits: dict[PurePosixPath, str]
    used: set[PurePosixPath]
    notes: tuple[str, ...] = ()
    problem: str = ""


class Row(NamedTuple):
    """A row of a table; without a class or a split, None or empty."""

    file: PurePosixPath
    label: Label
    split: str


def parse_split(name: str) -> str:
    """`training_set`, `train2017` and `trainA` -> "train"; empty for other names."""
    plain = re.sub(r"(?<=[a-z])(\d+|[AB])$", "", name).lower()
    words = [word for word in re.split(r"[\W_]+", plain) if word and word not in SPLIT_FILLERS]
    return SPLIT_WORDS.get(words[0].removesuffix("set"), "") if len(words) == 1 else ""


# --- tables ---


def is_table(name: PurePosixPath) -> bool:
    return name.name.lower() in TABLE_NAMES


def read_tables(names: Sequence[PurePosixPath], texts: Texts) -> Annotations:
    """Classes and splits of the images `names` from tables."""
    known, others = set(names), other_names(names)
    labels: dict[PurePosixPath, Label] = {}
    splits: dict[PurePosixPath, str] = {}
    used: set[PurePosixPath] = set()
    notes: list[str] = []
    problems: dict[PurePosixPath, str] = {}
    for table in filter(is_table, texts):
        rows, absent, unknown_split = list(read_rows(table, texts[table])), [], ""
        for file, label, split in rows:
            name = file if file in known else others.get(str(file).lower()) or others.get(file.name.lower())
            if name is None:
                absent.append(file)
                continue
            used.add(table)
            if label is not None and labels.setdefault(name, label) != label:
                problems.setdefault(name, f"{name} has two classes in {table}, {labels[name]} and {label}")
            if split and splits.setdefault(name, parse_split(split)) != parse_split(split):
                problems.setdefault(name, f"{name} is in two splits in {table}, {splits[name]} and {split}")
            unknown_split = unknown_split or (split if not parse_split(split) else "")
        if not rows:
            notes.append(describe_useless(table))
        elif absent:
            notes.append(f"missing files of {table}: {len(absent)}, such as {absent[0]}")
        if unknown_split:
            notes.append(
                f"the splits of {table} are ignored where they are not train, val or test, such as {unknown_split}"
            )
    if labels and len(labels) < len(names):
        notes.append(f"{len(labels)} of {len(names)} images have their class from a table")
    contradictory: dict[PurePosixPath, Label] = dict.fromkeys(problems)
    problem = next(iter(problems.values()), "")
    return Annotations(labels | contradictory, splits, used, (*notes, problem) if problem else tuple(notes), problem)


def describe_useless(table: PurePosixPath) -> str:
    """Why a table without rows gives no classes."""
    if table.name.lower() == EDM_TABLE:
        return f"{table} gives no classes: its `labels` are not pairs of a file and a class number"
    return f"{table} gives no classes: it needs a column `file` and a column `class`"


def other_names(names: Sequence[PurePosixPath]) -> dict[str, PurePosixPath]:
    """Images by what tables call them: in small letters, without suffix, without folders; only where that is unique."""
    found: dict[str, PurePosixPath | None] = {}
    for name in names:
        for other in {str(name), str(name.with_suffix("")), name.name, name.stem}:
            key = other.lower()
            found[key] = name if found.get(key, name) == name else None
    return {other: name for other, name in found.items() if name is not None}


def read_rows(table: PurePosixPath, content: bytes) -> Iterator[Row]:
    """The rows with a class or a split. Nothing for a table without such columns."""
    text = decode_text(content)
    match table.name.lower():
        case name if name == EDM_TABLE:
            yield from read_edm_rows(table.parent, text)
        case name if name == TINY_IMAGENET_TABLE:
            yield from read_records(table.parent / "images", read_csv(f"file\tclass\n{text}", "\t"))
        case "metadata.jsonl":
            yield from read_records(table.parent, map(parse_json_object, text.splitlines()))
        case _:
            text = re.sub(r"\Asep=.\r?\n", "", text)  # Excel's first line
            delimiter = max(",;\t|", key=text.partition("\n")[0].count)
            yield from read_records(table.parent, read_csv(text, delimiter))


def read_csv(text: str, delimiter: str) -> Iterator[dict[str, str]]:
    """The rows, by name of column."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    with contextlib.suppress(csv.Error):
        header = [cell.strip().lower() for cell in next(rows, [])]
        for row in rows:
            record = dict(zip(header, (cell.strip() for cell in row)))
            if header == RJEM_HEADER and record.get("label") == "-1":  # a sample without a class
                continue
            yield record


def read_records(folder: PurePosixPath, records: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    """The rows of the images in `folder`."""
    for record in records:
        file, label, split = (
            next((str(record[name]) for name in columns if type(record.get(name)) in (str, int)), "")
            for columns in (FILE_COLUMNS, CLASS_COLUMNS, SPLIT_COLUMNS)
        )
        if file and (label or split):
            yield Row(folder / clean_name(file), unicodedata.normalize("NFC", label) or None, split)


def read_edm_rows(folder: PurePosixPath, text: str) -> Iterator[Row]:
    """The rows of EDM's dataset.json with a class number; in other programs' files, labels may be vectors."""
    labels = parse_json_object(text).get("labels")
    for entry in labels if isinstance(labels, list) else ():
        match entry:
            case [str(file), int(number)] if file and number >= 0:
                yield Row(folder / clean_name(file), number, "")


def parse_json_object(text: str) -> dict[str, Any]:
    """Empty for invalid JSON and for other values."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def decode_text(content: bytes) -> str:
    """Text as spreadsheets save it: UTF-8 or UTF-16 with a byte-order mark, else UTF-8, else Windows's Latin."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


# --- WebDataset ---


def read_sidecars(names: Sequence[PurePosixPath], texts: Texts, suffixes: Sequence[str]) -> Annotations:
    """Classes from sidecars: `x.cls`, `x.json` or `x.txt` describe `x.png` and `x.input.png`. A .json or .txt counts
    only if every image has one, with at least two images per class on average. Classes are numbers if all are."""
    for suffix in suffixes:
        by_key = {key: text for text in texts if text.suffix == suffix for key in sidecar_keys(text)}
        keys = {name: next(filter(by_key.__contains__, sidecar_keys(name)), None) for name in names}
        found = {name: by_key[key] for name, key in keys.items() if key is not None}
        words = {name: parse_sidecar(suffix, texts[text]) for name, text in found.items()}
        words = {name: word for name, word in words.items() if word}
        distinct = set(words.values())
        if not words or (suffix != ".cls" and not (len(words) == len(names) and 1 < len(distinct) <= len(words) / 2)):
            continue
        numbers = all(word.isdecimal() and len(word) < 10 for word in distinct)
        labels: dict[PurePosixPath, Label] = {name: int(word) if numbers else word for name, word in words.items()}
        return Annotations(labels, {}, set(found.values()), (f"{len(words)} classes are from {suffix} files",))
    return Annotations({}, {}, set())


def sidecar_keys(name: PurePosixPath) -> tuple[PurePosixPath, PurePosixPath]:
    """The name without its suffix, and WebDataset's key, which ends at the first dot."""
    return name.with_suffix(""), name.with_name(name.name.split(".")[0] or name.name)


def parse_sidecar(suffix: str, content: bytes) -> str:
    """The class in a sidecar; empty without one."""
    text = decode_text(content).strip()
    if suffix == ".json":
        document = parse_json_object(text)
        values = [document.get(key) for key in JSON_KEYS]
        text = next((str(value) for value in values if type(value) in (str, int)), "")
    one_line = len(text) <= LONGEST_CLASS and len(text.splitlines()) == 1
    return unicodedata.normalize("NFC", text) if one_line else ""
