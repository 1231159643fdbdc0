"""Where rjem keeps things, and how files are written: whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rjem_cli.config import DATASETS, STREAM
from rjem_cli.errors import AbsentError, ConfigError, RjemError, did_you_mean

LOCK_PATIENCE = 0.5  # seconds between two calls of `waiting`


def home() -> Path:
    """All state lives here: RJEM_HOME, else the platform's user data folder."""
    if os.environ.get("RJEM_HOME"):
        return expand(os.environ["RJEM_HOME"]).absolute()
    import platformdirs

    return Path(platformdirs.user_data_dir("rjem"))


def expand(name: str) -> Path:
    """A path with ~ resolved. Raises ConfigError for a user who is not there."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise ConfigError(f"{name}: there is no such home folder; give a full path") from None


def absolute(name: str | None) -> str | None:
    return None if name is None else str(expand(name).resolve())


def existing_data(name: str) -> Path:
    """Where a user's images are. Raises AbsentError if nothing is there."""
    path = expand(name)
    if not path.exists():
        raise AbsentError(f"{name} is not there; give a folder of class folders, a .zip, a .tar or a .tar.xz")
    return path


def datasets_dir() -> Path:
    return home() / "datasets"


def priors_dir() -> Path:
    return home() / "priors"


def features_dir() -> Path:
    return home() / "features"


def judges_dir() -> Path:
    return home() / "judges"


def weights_dir() -> Path:
    return home() / "weights"


def results_file() -> Path:
    return home() / "results.jsonl"


def runs_dir() -> Path:
    return home() / "runs"


def offline() -> bool:
    """RJEM_OFFLINE=1 forbids the network."""
    return os.environ.get("RJEM_OFFLINE", "").lower() in ("1", "true", "yes", "on")


@contextlib.contextmanager
def explained(action: str, path: Path | str) -> Iterator[None]:
    """Turn an OSError under it into one line: `cannot write out/1.png: No space left on device`."""
    try:
        yield
    except BrokenPipeError:  # a reader that has gone is no error of the place
        raise
    except OSError as error:
        raise RjemError(
            f"cannot {action} {path}: {error.strerror or error}; choose another place or make room"
        ) from error


def make_dir(path: Path) -> Path:
    """Create a folder with its parents. Raises RjemError where that is not possible."""
    with explained("create folder", path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def own_folder(folder: Path, flag: str, ours: re.Pattern[str], document: str) -> dict[str, Any] | None:
    """Make a folder for results, whose files (paths below it) match `ours`; gives the JSON `document` of earlier ones,
    None in an empty folder. Raises ConfigError where other files are in it, or any without that document, since names
    such as 000001.png prove nothing; RjemError where it cannot be written."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{flag} {folder} is a file; give a folder")
    make_dir(folder)
    check_writable(folder)
    with explained("write to", folder):
        present = [
            path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()
        ]
        present = [path for path in present if not path.name.startswith(".")]
        foreign = [path.as_posix() for path in present if not ours.fullmatch(path.as_posix())]
        if foreign:
            raise ConfigError(f"{flag} {folder} holds other files, such as {foreign[0]}; give an empty folder")
        if not present:
            return None
        try:
            earlier = json.loads((folder / document).read_bytes())
        except (OSError, ValueError, RecursionError):
            earlier = None
    if not isinstance(earlier, dict) or "rjem" not in earlier:
        raise ConfigError(f"{flag} {folder} holds files, but no {document} of rjem; give an empty folder")
    return earlier


@contextlib.contextmanager
def claimed_folder(folder: Path, flag: str, ours: re.Pattern[str], document: str) -> Iterator[dict[str, Any] | None]:
    """`own_folder`, for this process alone. Nothing is put into a folder that is not ours, not even a lock."""
    own_folder(folder, flag, ours, document)
    with locked(folder / document, wait=False):
        yield own_folder(folder, flag, ours, document)


def empty_own_folder(folder: Path, ours: re.Pattern[str]) -> None:
    """Remove the results of an earlier call, and nothing else. Raises RjemError."""
    with explained("clear", folder):
        present = [path for path in folder.rglob("*") if ours.fullmatch(path.relative_to(folder).as_posix())]
        for path in present:
            path.unlink()
        for below in {path.parent for path in present} - {folder}:
            with contextlib.suppress(OSError):  # something hidden is in it
                below.rmdir()


def check_writable(folder: Path) -> None:
    """Fail before the work, not after it. Raises RjemError."""
    probe = folder / f".rjem-probe-{os.getpid()}"
    try:
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise RjemError(f"cannot write to {folder}: {error.strerror}; choose another place") from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file beside `path` that takes its place, fsynced, once the body is done; nothing is left if it fails."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes private files; ours follow the umask
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside `path`, fsync, rename: a reader, or a crash, sees the old file or the new one. Raises RjemError."""
    make_dir(path.parent)
    with explained("write", path), replacing(path) as file:
        file.write(content)


def append_line(path: Path, line: str | None) -> None:
    """One line, whole or not at all, whoever else appends; None only tries whether it could. Raises RjemError."""
    if path.is_dir():
        raise RjemError(f"{path} is a folder; give a file's name")
    if line is None and not path.exists():
        check_writable(make_dir(path.parent))
        return
    with locked(path), explained("write", path), path.open("ab") as file:
        if line is None:
            return
        before = file.seek(0, os.SEEK_END)
        try:
            file.write(line.encode() + b"\n")
            file.flush()
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(before)
            raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def lock_path(path: Path) -> Path:
    return path.parent / f".{path.name}.lock"


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """One process at a time may write `path`; the operating system frees the lock of a process that died. `waiting` is
    called again and again until the lock is free, and may raise. Without `wait`, a lock that is held raises RjemError,
    and the lock's file goes with it."""
    from filelock import FileLock, Timeout

    make_dir(path.parent)
    lock = FileLock(lock_path(path))
    with explained("lock", path):
        while not lock.is_locked:
            try:
                lock.acquire(timeout=LOCK_PATIENCE if wait else 0)
            except Timeout:  # an OSError too
                if not wait:
                    raise RjemError(f"{path} is in use by another process; wait for it, or take another name") from None
                waiting()
    try:
        yield
    finally:
        if not wait:
            with contextlib.suppress(OSError):
                lock_path(path).unlink(missing_ok=True)
        lock.release()


def checkpoints_in(run_dir: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    found = (run_dir / "checkpoints").glob("step-*.safetensors")
    return sorted(path for path in found if path.stem.removeprefix("step-").isdecimal())


def run_names() -> list[str]:
    """Runs with a checkpoint, for completions and hints."""
    return sorted(path.name for path in runs_dir().glob("*") if checkpoints_in(path))


def find_run(name: str) -> Path | None:
    """The folder of a run given by name or by path; None if there is none with a checkpoint."""
    for folder in (runs_dir() / name, Path(name)):
        if checkpoints_in(folder):
            return folder
    return None


def find_resumable(resume: str, run: str | None) -> Path:
    """The run to go on with: `resume`, or for "auto" the one that --run names, else the newest. Raises AbsentError."""
    name = run if resume == "auto" else resume
    folder = find_run(name) if name else find_checkpoint(None).parent.parent
    if folder is None:
        raise AbsentError(f"run {name} has no checkpoint to resume from in {runs_dir()}")
    return folder


def new_run_dir(name: str) -> Path:
    """Where a new run of this name goes. Raises ConfigError for a name with folders in it and for one that is taken."""
    if Path(name).name != name or name.startswith(".") or not name.isprintable():
        raise ConfigError(f"--run {name!r}: give a plain name, without folders")
    if checkpoints_in(runs_dir() / name):
        raise ConfigError(f"run {name} exists already in {runs_dir()}; go on with --resume auto, or take another --run")
    return runs_dir() / name


def step_of(checkpoint: Path) -> int:
    """`step-00000600.safetensors` -> 600."""
    return int(checkpoint.stem.removeprefix("step-"))


def find_subject(name: str) -> Path | None:
    """The checkpoint that `name` means, a file or a run; None for images. Raises AbsentError for nothing that is there,
    ConfigError for what is both a run and a place of images."""
    if not name:
        raise ConfigError("an empty name is no place of images; give a folder, a file, a run or -")
    if (
        name == STREAM
        or name.rpartition(":")[0] in DATASETS
        or (name in DATASETS and not checkpoints_in(runs_dir() / name))
    ):
        return None
    path, run = expand(name), [] if "/" in name else checkpoints_in(runs_dir() / name)
    if path.is_file() and path.suffix == ".safetensors":
        return path
    if path.is_dir() and checkpoints_in(path):
        return (run or checkpoints_in(path))[-1]  # as find_checkpoint has it
    if path.exists() and run:
        raise ConfigError(
            f"{name} is a run and a place of images; give ./{name}, or the run's folder {runs_dir() / name}"
        )
    if path.exists():
        return None
    if run:
        return run[-1]
    runs = run_names()
    hint = did_you_mean(name, runs) if runs else "give a folder, an .npz, a .tar or a checkpoint"
    raise AbsentError(f"{name} is not there, neither images nor a checkpoint nor a run in {runs_dir()}; {hint}")


def find_checkpoint(name: str | None) -> Path:
    """A checkpoint file from a path, a run's name or folder, or (None) the run that saved last. Raises AbsentError."""
    if name is not None:
        if Path(name).is_file():
            return Path(name)
        folder = find_run(name)
        if folder is not None:
            return checkpoints_in(folder)[-1]
        runs = run_names()
        hint = did_you_mean(name, runs) if runs else "there is no run yet; train one: rjem train"
        raise AbsentError(f"{name} is no checkpoint and no run in {runs_dir()}; {hint}")
    newest = [checkpoints_in(runs_dir() / run)[-1] for run in run_names()]
    if not newest:
        raise AbsentError(f"no checkpoint yet in {runs_dir()}; train one: rjem train")
    return max(newest, key=lambda path: path.stat().st_mtime)
