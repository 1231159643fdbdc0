"""The split and the class of each image file, from the names of its folders, from a table such as labels.csv, or from
WebDataset's files of the same key.

A class is the outermost folder below the split, as in torchvision's ImageFolder. Folders that hold everything are
skipped. A folder named train, val or test is a split only if class folders lie below it.
"""

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from rjem_cli.engine.data.annotations import (
    SIDECARS,
    Annotations,
    Label,
    Texts,
    parse_split,
    read_sidecars,
    read_tables,
)

EXAMPLE = "give class folders, such as cats/1.png dogs/1.png, or a labels.csv with the columns file,class"
NUMBERED_FOLDER = re.compile(r"(.*/)?(?P<folder>\d{5,12})/(img)?(?P<number>\d{5,12})\.\w+")

Folders = tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """By image: `splits`, "train" without split folders; `labels`, class names or numbers, None for an image without a
    class. `problem` says why an image that needs a class has none; `notes` are for the user. `has_splits`: whether
    folders or a table name splits. `used`: the tables and sidecars that gave classes."""

    splits: tuple[str, ...]
    labels: tuple[Label, ...]
    problem: str = ""
    notes: tuple[str, ...] = ()
    has_splits: bool = False
    used: frozenset[PurePosixPath] = frozenset()


def find_layout(names: Sequence[PurePosixPath], texts: Texts) -> Layout:
    """The layout of the image files `names`. Precedence of classes: table, .cls, folder, other sidecars. A split in a
    table and a folder must agree."""
    folders, tables = arrange_folders(names), read_tables(names, texts)
    unlabelled = [name for name in names if name not in tables.labels]
    by_folder = dict(zip(names, folders.labels)) if not folders.problem else arrange_labels(unlabelled)
    distinct = {by_folder.get(name) for name in names} - {None}
    relabelled = any(by_folder.get(name) not in (None, label) for name, label in tables.labels.items())
    one_may_be_any_folder = not folders.problem and (not folders.has_splits or relabelled)
    has_classes = len(distinct) > (1 if one_may_be_any_folder else 0)
    sidecars = read_sidecars(unlabelled, texts, (".cls",) if has_classes else SIDECARS)
    given = tables.labels | sidecars.labels
    if given or tables.splits:
        labels = dict.fromkeys(names) | (by_folder if has_classes or not given else {}) | given
        return combine(names, folders, labels, tables, sidecars)
    hidden = "" if has_classes else next(iter(tables.notes), "")
    return replace(
        folders,
        splits=tuple(split or "train" for split in folders.splits),
        problem="; ".join(filter(None, (folders.problem, hidden))),
        notes=(*tables.notes, *sidecars.notes, *folders.notes),
    )


def arrange_labels(names: Sequence[PurePosixPath]) -> dict[PurePosixPath, Label]:
    """The classes of some images only, from their folders below a split; empty without splits."""
    folders = arrange_folders(names)
    return dict(zip(names, folders.labels)) if folders.has_splits and not folders.problem else {}


def combine(
    names: Sequence[PurePosixPath],
    folders: Layout,
    labels: dict[PurePosixPath, Label],
    tables: Annotations,
    sidecars: Annotations,
) -> Layout:
    """The layout of images that tables or sidecars describe."""
    splits = list(folders.splits)
    if len(set(folders.labels)) < 2:  # else a folder called test may be a class
        splits = [split or innermost_split(name) for name, split in zip(names, splits)]
    problem = tables.problem or find_contradiction(names, splits, tables.splits)
    splits = [tables.splits.get(name) or split for name, split in zip(names, splits)]
    has_splits, splits = any(splits), [split or "train" for split in splits]
    unlabelled = [(name, split) for name, split in zip(names, splits) if labels[name] is None]
    lost = next((name for name, split in unlabelled if split == "train"), None)
    if lost and not problem:
        given = tables.labels or sidecars.labels
        problem = f"{lost} has no class, but other images have one" if given else folders.problem
    if len({type(label) for label in labels.values() if label is not None}) > 1:  # numbers of some, names of others
        labels = {name: None if label is None else str(label) for name, label in labels.items()}
    notes = (*tables.notes, *sidecars.notes)
    if unlabelled:
        notes = (*notes, describe_unlabelled([split for _, split in unlabelled]))
    used = frozenset(tables.used | sidecars.used)
    return Layout(tuple(splits), tuple(labels[name] for name in names), problem, notes, has_splits, used)


def find_contradiction(
    names: Sequence[PurePosixPath], splits: Sequence[str], by_table: Mapping[PurePosixPath, str]
) -> str:
    """A sentence on an image whose folder and table name different splits; empty if there is none."""
    for name, split in zip(names, splits):
        if split and by_table.get(name, split) not in (split, ""):
            return f"{name} is in the split {by_table[name]} by a table, but {split} by its folder"
    return ""


def describe_unlabelled(splits: Sequence[str]) -> str:
    """Of images without a class: `images without a class: test 2, val 1`."""
    counts = Counter(splits)
    return f"images without a class: {', '.join(f'{split} {count}' for split, count in sorted(counts.items()))}"


# --- folders ---


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
    """The depth of the split folders; None without splits. Every folder at that depth must be a split, with class
    folders below some. So `bus/ car/ train/` are three classes."""
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
    if not any(splits) and len(lookalikes := sorted(filter(parse_split, class_folders(folders)))) > 1:
        others = sorted(class_folders(folders) - {*lookalikes})
        problem = f"{lookalikes[0]} and {lookalikes[1]} look like splits, but "
        problem += f"{others[0]} lies beside them, so move it out" if others else "no class folders lie below them"
    if problem:
        return without_classes(names, problem)
    labels = tuple(None if split in bare else parts[0] for parts, split in zip(folders, splits))
    notes = (describe_unlabelled([split for split in splits if split in bare]),) if bare else ()
    return Layout(tuple(splits), labels, notes=notes, has_splits=any(splits))


def class_folders(folders: Sequence[Folders]) -> set[str]:
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
            both = f"{first} and {second} both contain {shared[0]} and {shared[1]}"
            return f"{both}, so it is unclear which folders are the classes"
    return ""


def is_in_numbered_folder(name: PurePosixPath) -> bool:
    """Whether the folder only cuts a long list into thousands, as in EDM's 001000/001234.png, 00001/img00001234.png."""
    match = NUMBERED_FOLDER.fullmatch(str(name))
    if match is None:
        return False
    folder, thousands = int(match["folder"]), int(match["number"]) // 1000
    return folder in (thousands, 1000 * thousands)
