"""What RJEM_HOME holds, how large it is, and how parts of it are removed. Only what rjem writes there by its own names
is ever touched."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rjem_cli import paths
from rjem_cli.errors import AbsentError, ConfigError, did_you_mean
from rjem_cli.files import LEFTOVER, explained, locked

LEFTOVER_AGE = 86_400.0  # seconds after which nobody writes a temporary file any more
RUNS = "runs"


class CacheKind(NamedTuple):
    """A folder of the home: what is in it, how its files or folders are called, whether they are one entry, and whether
    each is made again when it is needed, from what is there."""

    what: str
    names: str
    in_one: bool = False
    made_again: bool = False


KINDS = {
    RUNS: CacheKind("trained models", r"[^.].*"),
    "datasets": CacheKind("downloads", r"[a-z0-9-]+"),
    "weights": CacheKind("downloads", r"[^.].*\.pth"),
    "features": CacheKind("of images, for scores", r"[0-9a-f]{40}\.safetensors", in_one=True, made_again=True),
    "judges": CacheKind("classifiers that score", r"[0-9a-f]{32}"),
    "priors": CacheKind("where chains start", r"[0-9a-f]{64}\.safetensors", in_one=True),
    "comparisons": CacheKind("of rjem compare", r"[a-z]+-[0-9a-f]{32}(\.\w+)?"),
    "attacks": CacheKind("parts of AutoAttack", r"[0-9a-f]{32}", made_again=True),
}


@dataclass(frozen=True)
class CacheEntry:
    """A part of the home that is removed as a whole: its files, of `size` bytes, the last `changed` in seconds since
    the epoch. `place` is a file or folder; of a kind in one, the folder, which stays."""

    name: str
    place: Path
    files: tuple[Path, ...]
    size: int
    changed: float

    @property
    def kind(self) -> str:
        return self.name.partition("/")[0]


def entries() -> list[CacheEntry]:
    """All there are, by kind, then by name. Raises RjemError for a home that cannot be read."""
    found: list[CacheEntry] = []
    if paths.cache_dir().exists() and not paths.cache_dir().is_dir():
        raise ConfigError(f"RJEM_HOME {paths.cache_dir()} is a file; give a folder")
    for name, kind in KINDS.items():
        folder = paths.cache_dir() / name
        with explained("look at", folder):
            own = list(named(folder, kind.names))
            if kind.in_one and own:
                found.append(entry_of(name, folder, own))
            elif not kind.in_one:
                found += [entry_of(f"{name}/{place.name}", place, [place]) for place in own if is_ours(name, place)]
    return found


def named(folder: Path, pattern: str) -> Iterator[Path]:
    """What has such a name in a folder, in order; nothing where there is none."""
    if folder.is_dir():
        yield from sorted(path for path in folder.iterdir() if re.fullmatch(pattern, path.name))


def is_ours(kind: str, place: Path) -> bool:
    """A run's folder can have any name; it is known by what is in it."""
    return kind != RUNS or (place / "config.yaml").exists() or paths.checkpoints_dir(place).is_dir()


def entry_of(name: str, place: Path, parts: list[Path]) -> CacheEntry:
    """Of `parts`, files and folders with all that is in them. What vanishes meanwhile is not counted."""
    files: list[Path] = []
    size, changed = 0, 0.0
    for path in [*parts, *(below for part in parts if not part.is_symlink() for below in walked(part))]:
        with contextlib.suppress(FileNotFoundError):
            seen = path.lstat()
            changed = max(changed, seen.st_mtime)
            if not stat.S_ISDIR(seen.st_mode):
                files.append(path)
                size += seen.st_size
    return CacheEntry(name, place, tuple(files), size, changed)


def walked(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):  # passes over what vanishes, and follows no link
        yield from (Path(where) / name for name in (*folders, *files))


def entry_names() -> list[str]:
    """For completions, without a look at sizes."""
    names = []
    for name, kind in KINDS.items():
        own = [place for place in named(paths.cache_dir() / name, kind.names) if is_ours(name, place)]
        names += [name] if own else []
        names += [f"{name}/{place.name}" for place in own if not kind.in_one]
    return names


def chosen(names: list[str]) -> list[CacheEntry]:
    """The entries of these kinds and names. Raises AbsentError for one that is not there."""
    present = entries()
    found: dict[str, CacheEntry] = {}
    for name in names:
        own = [entry for entry in present if name in (entry.name, entry.kind)]
        if not own:
            known = sorted({entry.name for entry in present} | {entry.kind for entry in present})
            hint = did_you_mean(name, known) if known else "it is empty"
            raise AbsentError(f"{name!r} is not in {paths.cache_dir()}; {hint}")
        found |= {entry.name: entry for entry in own}
    return list(found.values())


def prunable(seconds: float) -> list[CacheEntry]:
    """What is made again when it is needed and has not changed for so long, and temporary files of killed processes
    in what stays."""
    now, present = time.time(), entries()
    old = [entry for entry in present if KINDS[entry.kind].made_again and now - entry.changed > seconds]
    left = []
    for entry in present:
        for file in () if entry in old else entry.files:
            if LEFTOVER.fullmatch(file.name):
                part = entry_of(str(file.relative_to(paths.cache_dir())), file, [file])
                left += [part] if now - part.changed > LEFTOVER_AGE else []
    return [*old, *left]


def remove(entry: CacheEntry) -> None:
    """Raises RjemError for what another process works with, and what cannot be removed."""
    with contextlib.ExitStack() as held:
        for path in lockable(entry):
            held.enter_context(locked(path, wait=False))
        with explained("remove", entry.place):
            if entry.place.is_dir() and not entry.place.is_symlink() and not KINDS[entry.kind].in_one:
                shutil.rmtree(entry.place)
            else:
                for file in entry.files:
                    file.unlink(missing_ok=True)


def lockable(entry: CacheEntry) -> list[Path]:
    """What a process that works with an entry holds a lock of: the whole, or one of its files."""
    below = entry.place if entry.place.is_dir() and not entry.place.is_symlink() else None
    locks = [lock for lock in walked(below) if re.fullmatch(r"\..+\.lock", lock.name)] if below else []
    return [entry.place, *(lock.parent / lock.name[1 : -len(".lock")] for lock in locks)]
