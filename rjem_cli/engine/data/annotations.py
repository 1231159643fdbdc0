"""Classes and splits from files beside the images: tables such as labels.csv, EDM's dataset.json, and WebDataset's
files of the same key."""

import codecs
import contextlib
import csv
import io
import json
import re
import unicodedata
from collections import Counter
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
    **dict.fromkeys(("train", "training", "trn", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
SPLIT_FILLERS = {"set", "data", "dataset", "images", "image", "imgs", "img", "split", "folder"}

ROOT = PurePosixPath(".")
AMBIGUOUS = PurePosixPath("/")  # stands for several images, whose own names are relative

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


class NameIndex(NamedTuple):
    """Images by what tables call them: `exact` by path, `ends` by the ends of their paths in small letters, with and
    without suffix, such as `cat/a.png`, `cat/a`, `a.png` and `a`; an end of several images means AMBIGUOUS. `is_flat`:
    whether all lie in one folder."""

    exact: frozenset[PurePosixPath]
    ends: dict[str, PurePosixPath]
    is_flat: bool


class Row(NamedTuple):
    """A row of a table. `file` is relative to the folder of the table. Without a class or a split, None or empty."""

    file: PurePosixPath
    label: Label
    split: str
    is_absolute: bool = False  # the path of the file on another machine


def parse_split(name: str) -> str:
    """`training_set`, `train2017` and `trainA` -> "train"; empty for other names."""
    plain = re.sub(r"(?<=[a-z])(\d+|[AB])$", "", name).lower()
    words = [word for word in re.split(r"[\W_]+", plain) if word and word not in SPLIT_FILLERS]
    return SPLIT_WORDS.get(words[0].removesuffix("set"), "") if len(words) == 1 else ""


# --- tables ---


def is_table(name: PurePosixPath) -> bool:
    return name.name.lower() in TABLE_NAMES


def read_tables(names: Sequence[PurePosixPath], texts: Texts) -> Annotations:
    """Classes and splits of the images `names` from tables. A table describes the images in its folder, or if there are
    none, all images."""
    tables = list(filter(is_table, texts))
    by_folder: dict[PurePosixPath, list[PurePosixPath]] = {}
    for name in names if tables else ():
        for folder in name.parents:
            by_folder.setdefault(folder, []).append(name)
    indices: dict[PurePosixPath, NameIndex] = {}
    result = TableReader()
    for table in tables:
        folder = table.parent if table.parent in by_folder else ROOT
        if folder not in indices:
            indices[folder] = index_names(by_folder.get(folder, []))
        result.read(table, list(read_rows(table, texts[table])), indices[folder])
    return result.annotations(len(names))


class TableReader:
    """Collects the rows of all tables. `problems`: of images that rows describe in different ways."""

    def __init__(self) -> None:
        self.labels: dict[PurePosixPath, Label] = {}
        self.splits: dict[PurePosixPath, str] = {}
        self.sources: dict[tuple[PurePosixPath, str], PurePosixPath] = {}  # the first table of a class or a split
        self.used: set[PurePosixPath] = set()
        self.notes: list[str] = []
        self.problems: dict[PurePosixPath, str] = {}

    def read(self, table: PurePosixPath, rows: Sequence[Row], index: NameIndex) -> None:
        found = [(find_image(row, table.parent, index), row) for row in rows]
        self.note_unmatched(table, found)
        if not any(row.label is not None or row.split for row in rows):
            self.notes.append(describe_useless(table))
        images = [(name, row) for name, row in found if name is not None and name != AMBIGUOUS]
        self.used |= {table} if images else set()
        for name, row in images:
            if row.label is None:
                continue
            where = self.where(name, "class", table)
            if str(self.labels.setdefault(name, row.label)) != str(row.label):
                problem = f"{name} has two classes in {where}, {self.labels[name]} and {row.label}"
                self.problems.setdefault(name, problem)
        self.read_splits(table, images)

    def read_splits(self, table: PurePosixPath, images: Sequence[tuple[PurePosixPath, Row]]) -> None:
        """Images in splits other than train, val and test keep its name, and are not used."""
        others = sorted({row.split for _, row in images if not parse_split(row.split)})
        if all(not parse_split(row.split) for _, row in images):
            if named := next(filter(None, others), None):
                self.notes.append(f"the splits of {table} are ignored: none is train, val or test (such as {named})")
            return
        for name, row in images:
            split = parse_split(row.split) or row.split or "none"
            where = self.where(name, "split", table)
            if self.splits.setdefault(name, split) != split:
                self.problems.setdefault(name, f"{name} is in two splits in {where}, {self.splits[name]} and {split}")
        if others:
            count, example = sum(not parse_split(row.split) for _, row in images), others[-1] or "none"
            self.notes.append(f"left out of training and tests by {table}: {count}, such as split {example}")

    def where(self, name: PurePosixPath, kind: str, table: PurePosixPath) -> str:
        """The tables that give an image its class or split, the first and this one."""
        first = self.sources.setdefault((name, kind), table)
        return f"{table}" if first == table else f"{first} and {table}"

    def note_unmatched(self, table: PurePosixPath, found: Sequence[tuple[PurePosixPath | None, Row]]) -> None:
        missing = [row.file for name, row in found if name is None]
        ambiguous = [row.file for name, row in found if name == AMBIGUOUS]
        if missing:
            self.notes.append(f"missing files of {table}: {len(missing)}, such as {missing[0]}")
        if ambiguous:
            self.notes.append(f"files of {table} that fit several images: {len(ambiguous)}, such as {ambiguous[0]}")

    def annotations(self, image_count: int) -> Annotations:
        """What the tables say of `image_count` images."""
        if self.labels and len(self.labels) < image_count:
            self.notes.append(f"{len(self.labels)} of {image_count} images have their class from a table")
        if self.splits and len(self.splits) < image_count:
            self.notes.append(f"{len(self.splits)} of {image_count} images have their split from a table")
        contradictory: dict[PurePosixPath, Label] = dict.fromkeys(self.problems)
        problem = next(iter(self.problems.values()), "")
        notes = (*self.notes, problem) if problem else tuple(self.notes)
        return Annotations(self.labels | contradictory, self.splits, self.used, notes, problem)


def describe_useless(table: PurePosixPath) -> str:
    """Why a table without rows gives no classes."""
    if table.name.lower() == EDM_TABLE:
        return f"{table} gives no classes: its `labels` are not pairs of a file and a class number"
    return f"{table} gives no classes: it needs a column `file` and a column `class`"


def index_names(names: Sequence[PurePosixPath]) -> NameIndex:
    ends: dict[str, PurePosixPath] = {}
    for name in names:
        for path in (name, name.with_suffix("")):
            parts = [part.lower() for part in path.parts]
            for start in range(len(parts)):
                key = "/".join(parts[start:])
                ends[key] = name if ends.get(key, name) == name else AMBIGUOUS
    return NameIndex(frozenset(names), ends, len({name.parent for name in names}) == 1)


def find_image(row: Row, folder: PurePosixPath, index: NameIndex) -> PurePosixPath | None:
    """The image that a row in a table in `folder` describes: the file itself, or the only image whose path ends like
    the row's, or is the end of it. For an absolute path its name is enough if all images lie in one folder. None if it
    is missing, AMBIGUOUS if there are several."""
    if (exact := folder / row.file) in index.exact:
        return exact
    parts = [part.lower() for part in row.file.parts]
    if (whole := "/".join(parts)) in index.ends:
        return index.ends[whole]
    for start in range(1, len(parts)):
        key = "/".join(parts[start:])
        name = index.ends.get(key, AMBIGUOUS)
        if name != AMBIGUOUS and key in (str(name).lower(), str(name.with_suffix("")).lower()):
            return name
    return index.ends.get(parts[-1]) if row.is_absolute and index.is_flat else None


def read_rows(table: PurePosixPath, content: bytes) -> Iterator[Row]:
    """The rows with a class or a split. Nothing for a table without such columns."""
    text = decode_text(content)
    match table.name.lower():
        case name if name == EDM_TABLE:
            yield from read_edm_rows(text)
        case name if name == TINY_IMAGENET_TABLE:
            for row in read_records(read_csv(f"file\tclass\n{text}", "\t")):
                yield row._replace(file="images" / row.file)
        case "metadata.jsonl":
            yield from read_records(map(parse_json_object, text.split("\n")))  # not at U+2028
        case _:
            text = re.sub(r"\Asep=.\r?\n", "", text)  # Excel's first line
            delimiter = max(",;\t|", key=text.partition("\n")[0].count)
            yield from read_records(read_csv(text, delimiter))


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


def read_records(records: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    for record in records:
        file, label, split = (
            next((str(record[name]) for name in columns if is_filled(record.get(name))), "")
            for columns in (FILE_COLUMNS, CLASS_COLUMNS, SPLIT_COLUMNS)
        )
        name, has_split = clean_name(file), any(column in record for column in SPLIT_COLUMNS)
        if name.parts and (label or split or has_split):
            is_absolute = re.match(r"([A-Za-z]:)?[\\/]", file) is not None
            yield Row(name, unicodedata.normalize("NFC", label) or None, split, is_absolute)


def is_filled(value: object) -> bool:
    """Whether a cell has a text or a whole number."""
    return type(value) in (str, int) and value != ""


def read_edm_rows(text: str) -> Iterator[Row]:
    """The rows of EDM's dataset.json with a class number; in other programs' files, labels may be vectors."""
    labels = parse_json_object(text).get("labels")
    for entry in labels if isinstance(labels, list) else ():
        match entry:
            case [str(file), int(number)] if clean_name(file).parts and number >= 0:
                yield Row(clean_name(file), number, "")


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
        sidecars = [text for text in texts if text.suffix == suffix]
        counts = Counter(sidecar_keys(text)[1] for text in sidecars)
        by_key = {key: text for text in sidecars if counts[key := sidecar_keys(text)[1]] == 1}
        by_key |= {text.with_suffix(""): text for text in sidecars}
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
