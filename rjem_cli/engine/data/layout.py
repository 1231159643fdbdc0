"""The split and the class of each image file, from the names of its folders, from a table such as labels.csv, or from
WebDataset's files of the same key.

A class is the outermost folder below the split, as in torchvision's ImageFolder. Folders that hold everything are
skipped. A folder named train, val or test is a split only if class folders lie below it.
"""

import codecs
import contextlib
import csv
import io
import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import NamedTuple

from rjem_cli.engine.data.archives import clean_name

EXAMPLE = "give class folders, such as cats/1.png dogs/1.png"
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
SPLIT_FILLERS = {"set", "data", "dataset", "images", "image", "imgs", "img", "split", "folder"}
NUMBERED_FOLDER = re.compile(r"(.*/)?(?P<folder>\d{5,12})/(img)?(?P<number>\d{5,12})\.\w+")
LABELS_NAME, RJEM_HEADER = "labels.csv", ["file", "label", "class", "seed"]  # as rjem writes it
TABLE_NAMES = (LABELS_NAME, "labels.tsv", "metadata.csv")  # the last is Hugging Face's
TINY_IMAGENET_TABLE = "val_annotations.txt"  # without a header: file, class, box
FILE_COLUMNS = ("file", "filename", "file_name", "image", "image_name", "img", "path", "image_path", "id", "image_id")
CLASS_COLUMNS = ("class", "class_name", "classname", "label_name", "category", "label", "target")
JSON_KEYS = ("class_name", "label_name", "class", "cls", "label", "category")
SIDECARS = (".cls", ".json", ".txt")  # of WebDataset, the first that has a class decides
LONGEST_CLASS = 100  # characters of a class in a .txt; longer texts are captions

Label = str | int | None
Folders = tuple[str, ...]
Texts = Mapping[PurePosixPath, bytes]  # contents of tables and sidecars


@dataclass(frozen=True)
class Layout:
    """By image: `splits`, "train" without split folders; `labels`, class names or numbers, None for an image without a
    class. `problem` says why an image that needs a class has none; `notes` are for the user. `has_splits`: whether
    folders name splits. `used`: the tables and sidecars that gave classes."""

    splits: tuple[str, ...]
    labels: tuple[Label, ...]
    problem: str = ""
    notes: tuple[str, ...] = ()
    has_splits: bool = False
    used: frozenset[PurePosixPath] = frozenset()


class Found(NamedTuple):
    """Classes of some images, and the tables or sidecars that gave them."""

    labels: dict[PurePosixPath, Label]
    used: set[PurePosixPath]
    notes: tuple[str, ...] = ()
    problem: str = ""


def find_layout(names: Sequence[PurePosixPath], texts: Texts) -> Layout:
    """The layout of the image files `names`. A class in a table or a .cls comes before the folder, the folder before
    other sidecars."""
    folders, tables = arrange_folders(names), read_tables(names, texts)
    has_classes = len(set(folders.labels) - {None}) > (0 if folders.has_splits else 1)  # one may be any folder
    rest = [name for name in names if name not in tables.labels]
    sidecars = read_sidecars(rest, texts, (".cls",) if has_classes else SIDECARS)
    given = tables.labels | sidecars.labels
    notes = [*tables.notes, *sidecars.notes]
    if not given:
        hidden = "" if has_classes else next(iter(tables.notes), "")
        problem = "; ".join(filter(None, (folders.problem, hidden)))
        splits = [split or "train" for split in folders.splits]
        return replace(folders, splits=tuple(splits), problem=problem, notes=(*notes, *folders.notes))
    by_folder = dict(zip(names, folders.labels)) if has_classes else {}
    labels = {name: given[name] if name in given else by_folder.get(name) for name in names}
    splits = [split or innermost_split(name) for name, split in zip(names, folders.splits)]
    bare = [split for name, split in zip(names, splits) if labels[name] is None]
    lost = next((name for name, split in zip(names, splits) if labels[name] is None and split in ("", "train")), None)
    if bare:
        notes.append(describe_bare(bare))
    problem = tables.problem or (f"{lost} has no class, but other images have one" if lost else "")
    used = frozenset(tables.used | sidecars.used)
    named = tuple(split or "train" for split in splits)
    return Layout(named, tuple(labels.values()), problem, tuple(notes), any(splits), used)


def describe_bare(splits: Sequence[str]) -> str:
    """Of images without a class: `images without a class: test 2, val 1`."""
    counts = Counter(split or "train" for split in splits)
    return f"images without a class: {', '.join(f'{split} {count}' for split, count in sorted(counts.items()))}"


# --- folders ---


def parse_split(folder: str) -> str:
    """`training_set`, `train2017` and `trainA` -> "train"; empty for other names."""
    plain = re.sub(r"(?<=[a-z])(\d+|[AB])$", "", folder).lower()
    words = [word for word in re.split(r"[\W_]+", plain) if word and word not in SPLIT_FILLERS]
    return SPLIT_WORDS.get(words[0].removesuffix("set"), "") if len(words) == 1 else ""


def innermost_split(name: PurePosixPath) -> str:
    """The split of an image whose class is known; empty without a split folder."""
    return next(filter(None, map(parse_split, reversed(name.parts[:-1]))), "")


def arrange_folders(names: Sequence[PurePosixPath]) -> Layout:
    """The layout of images whose class is the name of a folder."""
    folders = [name.parts[:-1] for name in names]
    loose = next((name for name in names if len(name.parts) == 1), None)
    if loose is not None:
        return without_classes(names, f"{loose} lies in no class folder")
    if names and all(map(is_in_numbered_folder, names)):
        return without_classes(names, "the numbered folders are not classes")
    level = find_split_level(folders)
    if level is not None:
        splits = [parse_split(parts[level]) for parts in folders]
        return arrange_classes(names, [parts[level + 1 :] for parts in folders], splits)
    below = strip_wrappers(folders, folders)
    if names and all(len(parts) == 2 and parse_split(parts[1]) for parts in below):  # cats/train/1.png cats/test/2.png
        return arrange_classes(names, [parts[:1] for parts in below], [parse_split(parts[1]) for parts in below])
    return arrange_classes(names, folders, [""] * len(names))


def without_classes(names: Sequence[PurePosixPath], problem: str) -> Layout:
    return Layout(("",) * len(names), (None,) * len(names), f"{problem}; {EXAMPLE}")


def find_split_level(folders: Sequence[Folders]) -> int | None:
    """How many folders lie above those that are splits; None without splits. At that level, each folder is a split, and
    class folders lie below some. So `bus/ car/ train/` are three classes."""
    for level in range(len(common_folders(folders)) + 1):
        found = {parts[level] if len(parts) > level else "" for parts in folders}
        if found and all(map(parse_split, found)):
            return level if any(len(parts) > level + 1 for parts in folders) or len(found) > 1 else None
    return None


def common_folders(folders: Sequence[Folders]) -> Folders:
    """The folders that hold all images, the outermost first."""
    return tuple(names[0] for names in itertools.takewhile(lambda names: len(set(names)) == 1, zip(*folders)))


def strip_wrappers(folders: Sequence[Folders], whole: Sequence[Folders]) -> list[Folders]:
    """`folders` without those that hold all images of `whole`; unchanged if no folder with a choice would be left."""
    common = common_folders(whole)
    if any(len(parts) == len(common) for parts in whole):
        return list(folders)
    return [parts[len(common) :] if parts[: len(common)] == common else parts for parts in folders]


def arrange_classes(names: Sequence[PurePosixPath], folders: Sequence[Folders], splits: Sequence[str]) -> Layout:
    """The layout of images from the `folders` below their split. Images of val and test that lie in no folder of a
    training class, but all in one folder, have no class."""
    train = [parts for parts, split in zip(folders, splits) if split == "train"]
    folders = strip_wrappers(folders, train or folders)
    classes = {parts[0] for parts, split in zip(folders, splits) if split == "train" and parts}
    bare = {split for split in ("val", "test") if train and has_no_class(folders, splits, split, classes)}
    members = [index for index, split in enumerate(splits) if split not in bare]
    problem = find_problem([names[index] for index in members], [folders[index] for index in members])
    if not any(splits) and len(lookalikes := sorted(filter(parse_split, classes_of(folders)))) > 1:
        problem = f"{lookalikes[0]} and {lookalikes[1]} look like splits, but no class folders lie below them"
    if problem:
        return without_classes(names, problem)
    labels = tuple(None if split in bare else parts[0] for parts, split in zip(folders, splits))
    notes = (describe_bare([split for split in splits if split in bare]),) if bare else ()
    return Layout(tuple(splits), labels, notes=notes, has_splits=any(splits))


def classes_of(folders: Sequence[Folders]) -> set[str]:
    return {parts[0] for parts in folders if parts}


def has_no_class(folders: Sequence[Folders], splits: Sequence[str], split: str, classes: set[str]) -> bool:
    heads = {parts[:1] for parts, own in zip(folders, splits) if own == split}
    return len(heads) == 1 and not heads & {(name,) for name in classes}


def find_problem(names: Sequence[PurePosixPath], folders: Sequence[Folders]) -> str:
    """Why these folders are not classes; empty if they are."""
    loose = next((name for name, parts in zip(names, folders) if not parts), None)
    if loose is not None:
        return f"{loose} lies in no class folder"
    by_depth = {len(parts): name for name, parts in zip(names, folders)}
    if len(by_depth) > 1:
        return f"{by_depth[min(by_depth)]} and {by_depth[max(by_depth)]} lie at different depths"
    inner: dict[str, set[str]] = {}
    for parts in folders:
        inner.setdefault(parts[0], set()).update(parts[1:2])
    several = sorted(name for name, folders_below in inner.items() if len(folders_below) > 1)
    for first, second in itertools.combinations(several, 2):
        shared = sorted(inner[first] & inner[second])
        if len(shared) > 1:
            return f"{first} and {second} both contain {shared[0]} and {shared[1]}, so which folders are the classes?"
    return ""


def is_in_numbered_folder(name: PurePosixPath) -> bool:
    """Whether the folder only cuts a long list into thousands, as in EDM's 001000/001234.png, 00001/img00001234.png."""
    match = NUMBERED_FOLDER.fullmatch(str(name))
    if match is None:
        return False
    folder, thousands = int(match["folder"]), int(match["number"]) // 1000
    return folder in (thousands, 1000 * thousands)


# --- tables ---


def is_table(name: PurePosixPath) -> bool:
    return name.name.lower() in (*TABLE_NAMES, TINY_IMAGENET_TABLE)


def read_tables(names: Sequence[PurePosixPath], texts: Texts) -> Found:
    """Classes from tables. An image to which tables give two classes has none."""
    known, notes, used = set(names), [], set()
    labels: dict[PurePosixPath, Label] = {}
    problems: list[str] = []
    others = other_names(names)
    for table in filter(is_table, texts):
        rows, absent = list(read_rows(table, texts[table])), []
        for file, label in rows:
            name = file if file in known else others.get(str(file).lower()) or others.get(file.name.lower())
            if name is None:
                absent.append(file)
                continue
            used.add(table)
            if labels.setdefault(name, label) != label:
                problems.append(f"{name} has two classes in {table}, {labels[name]} and {label}")
        if not rows:
            notes.append(f"{table} gives no classes: it needs a column `file` and a column `class`")
        elif absent:
            notes.append(f"missing files of {table}: {len(absent)}, such as {absent[0]}")
    if labels and len(labels) < len(names):
        notes.append(f"{len(labels)} of {len(names)} images have their class from a table")
    return Found(labels, used, tuple(notes), *problems[:1])


def other_names(names: Sequence[PurePosixPath]) -> dict[str, PurePosixPath]:
    """Images by what tables call them: in small letters, without suffix, without folders; only where that is unique."""
    found: dict[str, PurePosixPath | None] = {}
    for name in names:
        for other in {str(name), str(name.with_suffix("")), name.name, name.stem}:
            key = other.lower()
            found[key] = name if found.get(key, name) == name else None
    return {other: name for other, name in found.items() if name is not None}


def read_rows(table: PurePosixPath, content: bytes) -> Iterator[tuple[PurePosixPath, str]]:
    """(file, class) of each row with a class. Nothing for a table without such columns."""
    text = re.sub(r"\Asep=.\r?\n", "", decode_text(content))  # Excel's first line
    folder, delimiter = table.parent, "\t"
    if table.name == TINY_IMAGENET_TABLE:
        folder, text = folder / "images", f"file\tclass\n{text}"
    else:
        delimiter = max(",;\t|", key=text.partition("\n")[0].count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    with contextlib.suppress(csv.Error):
        header = [cell.strip().lower() for cell in next(rows, [])]
        file_column = next((header.index(name) for name in FILE_COLUMNS if name in header), None)
        class_column = next((header.index(name) for name in CLASS_COLUMNS if name in header), None)
        if file_column is None or class_column is None:
            return
        is_rjem = header == RJEM_HEADER  # label is -1 for a sample without a class
        for row in rows:
            cells = dict(enumerate(row))
            file, label = cells.get(file_column, "").strip(), cells.get(class_column, "").strip()
            if file and label and not (is_rjem and cells.get(header.index("label")) == "-1"):
                yield folder / clean_name(file), unicodedata.normalize("NFC", label)


def decode_text(content: bytes) -> str:
    """Text as spreadsheets save it: UTF-8 or UTF-16 with a byte-order mark, else UTF-8, else Windows's Latin."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


# --- WebDataset ---


def read_sidecars(names: Sequence[PurePosixPath], texts: Texts, suffixes: Sequence[str]) -> Found:
    """Classes from sidecars: `x.cls`, `x.json` or `x.txt` describe `x.png` and `x.input.png`. Of .json and .txt, those
    that describe every image with few classes. Classes are numbers if all are."""
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
        return Found(labels, set(found.values()), (f"{len(words)} classes are from {suffix} files",))
    return Found({}, set())


def sidecar_keys(name: PurePosixPath) -> tuple[PurePosixPath, PurePosixPath]:
    """The name without its suffix, and WebDataset's key, which ends at the first dot."""
    return name.with_suffix(""), name.with_name(name.name.split(".")[0] or name.name)


def parse_sidecar(suffix: str, content: bytes) -> str:
    """The class in a sidecar; empty without one."""
    text = decode_text(content).strip()
    if suffix == ".json":
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            return ""
        values = [document.get(key) for key in JSON_KEYS] if isinstance(document, dict) else []
        text = next((str(value) for value in values if type(value) in (str, int)), "")
    one_line = len(text) <= LONGEST_CLASS and len(text.splitlines()) == 1
    return unicodedata.normalize("NFC", text) if one_line else ""
