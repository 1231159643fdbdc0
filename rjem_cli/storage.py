"""What the cache and the runs folder hold, how large it is, and how parts are removed. Only files with names that rjem
gives are listed or removed."""

import contextlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rjem_cli import paths
from rjem_cli.config.common import DATASETS
from rjem_cli.config.sources import read_mapping
from rjem_cli.errors import AbsentError, ConfigError, RjemError, did_you_mean
from rjem_cli.files import LEFTOVER, explained, locked

LEFTOVER_AGE = 86_400.0  # seconds after which a temporary file belongs to no running process


class CacheKind(NamedTuple):
    """A folder of the cache. `names` matches its files and folders; `single`: they are one entry; `prunable`: they are
    computed again when they are needed, from files that are still there."""

    description: str
    names: str
    single: bool = False
    prunable: bool = False


KINDS = {
    "datasets": CacheKind("downloads", "|".join(DATASETS)),
    "weights": CacheKind("downloads", r"[^.].*\.pth"),
    "features": CacheKind("features of images, for scores", r"[0-9a-f]{40}\.safetensors", single=True, prunable=True),
    "judges": CacheKind("classifiers that score samples", r"[0-9a-f]{32}"),
    "priors": CacheKind("class Gaussians, where chains start", r"[0-9a-f]{64}\.safetensors", single=True),
    "comparisons": CacheKind("rows of rjem compare", r"[a-z]+-[0-9a-f]{32}(\.\w+)?"),
    "timings": CacheKind("times of fp32 and bf16 on this CPU", r"[0-9a-f]{64}\.json", single=True),
    "attacks": CacheKind("partial results of AutoAttack", r"[0-9a-f]{32}", prunable=True),
}


class Usage(NamedTuple):
    """The files below some paths; `size` in bytes, `changed` in seconds since 1970."""

    files: tuple[Path, ...]
    size: int
    changed: float


@dataclass(frozen=True)
class CacheEntry:
    """Files that are listed and removed together. `path` is a file or a folder; the folder of a single kind stays."""

    name: str
    path: Path
    usage: Usage

    @property
    def kind_name(self) -> str:
        return self.name.partition("/")[0]

    @property
    def kind(self) -> CacheKind:
        return KINDS[self.kind_name]


@dataclass(frozen=True)
class RunEntry:
    """A run: the values of its config.yaml as text, its summary.json, and its checkpoints, oldest first. A pretrained
    model has the same files and a model card, card.yaml."""

    name: str
    path: Path
    usage: Usage
    config: dict[str, Any]
    summary: dict[str, Any]
    checkpoints: list[Path]
    card: dict[str, Any]

    @property
    def is_pretrained(self) -> bool:
        return paths.is_pretrained(self.path)

    @property
    def step(self) -> int:
        return paths.parse_step(self.checkpoints[-1]) if self.checkpoints else 0

    @property
    def steps(self) -> int | None:
        """The number of training steps; None if the config gives epochs instead."""
        return int(text) if (text := str(self.config.get("steps"))).isdecimal() else None

    @property
    def progress(self) -> str:
        """`600 of 2000 steps` or `step 600 of 150.0 epochs`."""
        if self.steps is not None:
            return f"{self.step} of {self.steps} steps"
        return f"step {self.step}" + (f" of {self.config['epochs']} epochs" if self.config.get("epochs") else "")

    @property
    def data(self) -> str:
        return str(self.config.get("data") or self.config.get("dataset") or "unknown")

    @property
    def is_finished(self) -> bool:
        return bool(self.checkpoints) and self.summary.get("step") == self.step

    @property
    def state(self) -> str:
        if self.is_pretrained:
            return "pretrained"
        return "finished" if self.is_finished else "unfinished"

    def accuracy(self, name: str) -> float | None:
        """The `test_accuracy` or `robust_accuracy` of the newest checkpoint, if it was evaluated."""
        score = self.summary.get(name) if self.is_finished else None
        value = score.get("value") if isinstance(score, dict) else None
        return float(value) if isinstance(value, (int, float)) else None


def list_cache() -> list[CacheEntry]:
    """All entries of the cache, by kind, then by name. Raises RjemError if it cannot be read."""
    return [CacheEntry(name, path, measure(parts)) for name, path, parts in find_cache_entries()]


def cache_names() -> list[str]:
    """The names that `rjem cache rm` takes, for completion."""
    names = [name for name, _, _ in find_cache_entries()]
    return sorted({name.partition("/")[0] for name in names} | set(names))


def find_cache_entries() -> Iterator[tuple[str, Path, list[Path]]]:
    """Name, path and parts of each entry."""
    for name, kind in KINDS.items():
        folder = paths.cache_dir() / name
        present = [path for path in list_folder(folder) if re.fullmatch(kind.names, path.name)]
        if kind.single and present:
            yield name, folder, present
        elif not kind.single:
            yield from ((f"{name}/{path.name}", path, [path]) for path in present)


def list_runs() -> list[RunEntry]:
    """All runs and pretrained models, by name. Raises RjemError if the folder of the runs cannot be read."""
    return list(map(read_run, find_run_folders().values()))


def run_folder_names() -> list[str]:
    """The names that `rjem runs` takes, for completion."""
    return list(find_run_folders())


def find_run_folders() -> dict[str, Path]:
    """The folders of the runs and pretrained models, by name. A run with a checkpoint hides a pretrained model of the
    same name. A run without one is hidden by it."""
    runs = {path.name: path for path in list_folder(paths.runs_dir()) if is_run(path)}
    hidden = [name for name in paths.pretrained_names() if name in runs and paths.checkpoints_in(runs[name])]
    pretrained = {name: paths.PRETRAINED_DIR / name for name in paths.pretrained_names() if name not in hidden}
    return dict(sorted((runs | pretrained).items()))


def is_run(path: Path) -> bool:
    """A run can have any name, so it is recognized by its content."""
    return not path.name.startswith(".") and ((path / "config.yaml").exists() or paths.checkpoints_dir(path).is_dir())


def read_run(path: Path) -> RunEntry:
    """Missing or damaged files count as empty."""
    config: dict[str, Any] = {}
    card: dict[str, Any] = {}
    summary: Any = None
    with contextlib.suppress(RjemError):
        config = read_mapping(path / "config.yaml")
        card = read_mapping(path / paths.CARD_FILE) if paths.is_pretrained(path) else {}
    with contextlib.suppress(OSError, ValueError, RecursionError):
        summary = json.loads((path / "summary.json").read_bytes())
    summary = summary if isinstance(summary, dict) else {}
    return RunEntry(path.name, path, measure([path]), config, summary, paths.checkpoints_in(path), card)


def list_folder(folder: Path) -> list[Path]:
    """What is in a folder, in order; nothing if it does not exist. Raises RjemError if it cannot be read."""
    for parent in (folder, folder.parent):
        if parent.exists() and not parent.is_dir():
            raise ConfigError(f"{parent} is a file; rjem needs a folder there (see RJEM_HOME and RJEM_CACHE)")
    with explained("read", folder):
        return sorted(folder.iterdir()) if folder.exists() else []


def measure(parts: Iterable[Path]) -> Usage:
    """Of files, and folders with all their content. Links are not followed; files that vanish meanwhile are ignored."""
    files: list[Path] = []
    size, changed = 0, 0.0
    for path in (path for part in parts for path in (part, *([] if part.is_symlink() else walk(part)))):
        with contextlib.suppress(FileNotFoundError):
            info = path.lstat()
            changed = max(changed, info.st_mtime)
            if not stat.S_ISDIR(info.st_mode):
                files.append(path)
                size += info.st_size
    return Usage(tuple(files), size, changed)


def walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        yield from (Path(parent) / name for name in (*folders, *files))


def select_cache_entries(names: list[str]) -> list[CacheEntry]:
    """The entries of these names or kinds. Raises AbsentError for an unknown one."""
    present = list_cache()
    selected: dict[str, CacheEntry] = {}
    for name in names:
        matching = {entry.name: entry for entry in present if name in (entry.name, entry.kind_name)}
        if not matching:
            known = sorted({entry.name for entry in present} | {entry.kind_name for entry in present})
            raise AbsentError(missing(name, known, paths.cache_dir()))
        selected |= matching
    return list(selected.values())


def select_runs(names: list[str]) -> list[RunEntry]:
    """The runs and pretrained models of these names. Raises AbsentError for an unknown one."""
    folders = find_run_folders()
    for name in names:
        if name not in folders:
            raise AbsentError(missing(name, list(folders), paths.runs_dir()))
    return [read_run(folders[name]) for name in dict.fromkeys(names)]


def missing(name: str, known: list[str], folder: Path) -> str:
    return f"{name!r} is not in {folder}; {did_you_mean(name, known) if known else 'it is empty'}"


def prunable_entries(seconds: float) -> list[CacheEntry]:
    """Entries of prunable kinds that have not changed for so long, and temporary files of killed processes."""
    now, entries = time.time(), []
    for entry in list_cache():
        if entry.kind.prunable and now - entry.usage.changed > seconds:
            entries.append(entry)
            continue
        for file in entry.usage.files:
            usage = measure([file])
            if LEFTOVER.fullmatch(file.name) and now - usage.changed > LEFTOVER_AGE:
                entries.append(CacheEntry(str(file.relative_to(paths.cache_dir())), file, usage))
    return entries


def check_removable(entry: CacheEntry | RunEntry) -> None:
    """Raises RjemError for a pretrained model."""
    if isinstance(entry, RunEntry) and entry.is_pretrained:
        raise RjemError(f"{entry.name} is a pretrained model, part of rjem itself; it cannot be removed")


def remove(entry: CacheEntry | RunEntry) -> None:
    """Raises RjemError for a pretrained model, if another process uses the entry, or if it cannot be removed."""
    check_removable(entry)
    is_folder = entry.path.is_dir() and not entry.path.is_symlink()
    lock_files = [path for path in walk(entry.path) if re.fullmatch(r"\..+\.lock", path.name)] if is_folder else []
    locks = [entry.path, *(path.with_name(path.name[1 : -len(".lock")]) for path in lock_files)]
    with contextlib.ExitStack() as stack:
        for path in locks:
            stack.enter_context(locked(path, wait=False))
        with explained("remove", entry.path):
            if is_folder and not (isinstance(entry, CacheEntry) and entry.kind.single):
                shutil.rmtree(entry.path)
            else:
                for file in entry.usage.files:
                    file.unlink(missing_ok=True)
