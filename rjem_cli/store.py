"""What RJEM_HOME holds, how large it is, and how parts of it are removed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rjem_cli import paths
from rjem_cli.errors import AbsentError, did_you_mean
from rjem_cli.files import explained, locked

LEFTOVER_AGE = 86_400.0  # seconds after which nobody writes a temporary file any more
RUNS = "runs"
KINDS = {  # folder of the home: what is in it
    RUNS: "trained models, which only training makes again",
    "datasets": "downloads",
    "weights": "downloads",
    "features": "of images, computed by rjem eval",
    "judges": "classifiers that rjem eval trained",
    "priors": "of data sets, where chains start",
    "comparisons": "samples and scores of rjem compare",
    "attacks": "parts of AutoAttack that are done",
}
IN_ONE = {"features", "priors"}  # kinds of many small files: one entry
MADE_AGAIN = ("features", "judges", "priors", "attacks")  # without a download, when they are needed


@dataclass(frozen=True)
class Entry:
    """A part of the home that is removed as a whole: `size` in bytes, `changed` in seconds since the epoch."""

    name: str
    path: Path
    size: int
    changed: float

    @property
    def kind(self) -> str:
        return self.name.partition("/")[0]


def entries() -> list[Entry]:
    """All there are, by kind, then by name. Raises RjemError for a home that cannot be read."""
    found: list[Entry] = []
    for kind in KINDS:
        folder = paths.home() / kind
        with explained("look at", folder):
            if kind in IN_ONE:
                found += [entry_of(kind, folder)] if any(visible(folder)) else []
            else:
                found += [entry_of(f"{kind}/{path.name}", path) for path in sorted(visible(folder))]
    return found


def visible(folder: Path) -> Iterator[Path]:
    """What a folder holds but for locks and temporary files; nothing where there is none."""
    if folder.is_dir():
        yield from (path for path in folder.iterdir() if not path.name.startswith("."))


def entry_of(name: str, path: Path) -> Entry:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    stats = [file.lstat() for file in (*files, path)]
    return Entry(name, path, sum(stat.st_size for stat in stats[:-1]), max(stat.st_mtime for stat in stats))


def entry_names() -> list[str]:
    """For completions, without a look at sizes."""
    names = []
    for kind in KINDS:
        own = [] if kind in IN_ONE else sorted(path.name for path in visible(paths.home() / kind))
        names += [kind, *(f"{kind}/{name}" for name in own)] if any(visible(paths.home() / kind)) else []
    return names


def chosen(names: list[str]) -> list[Entry]:
    """The entries of these kinds and names. Raises AbsentError for one that is not there."""
    present = entries()
    found: dict[str, Entry] = {}
    for name in names:
        own = [entry for entry in present if name in (entry.name, entry.kind)]
        if not own:
            known = sorted({entry.name for entry in present} | {entry.kind for entry in present})
            hint = did_you_mean(name, known) if known else "it is empty"
            raise AbsentError(f"{name} is not in {paths.home()}; {hint}")
        found |= {entry.name: entry for entry in own}
    return list(found.values())


def unchanged(seconds: float) -> list[Entry]:
    """What is made again when it is needed, and has not changed for so long."""
    return [entry for entry in entries() if entry.kind in MADE_AGAIN and time.time() - entry.changed > seconds]


def leftovers() -> list[Entry]:
    """Temporary files of processes that were killed."""
    found = []
    for kind in KINDS:
        with explained("look at", paths.home() / kind):
            for path in (paths.home() / kind).rglob(".*"):
                if path.is_file() and not path.name.endswith(".lock"):
                    entry = entry_of(str(path.relative_to(paths.home())), path)
                    found += [entry] if time.time() - entry.changed > LEFTOVER_AGE else []
    return found


def remove(entry: Entry) -> None:
    """Raises RjemError for what another process works with, and what cannot be removed."""
    if entry.path.is_file() and entry.path.name.startswith("."):
        with explained("remove", entry.path):
            entry.path.unlink(missing_ok=True)
        return
    with locked(entry.path, wait=False), explained("remove", entry.path):
        if entry.path.is_dir() and not entry.path.is_symlink():
            shutil.rmtree(entry.path)
        else:
            entry.path.unlink()
