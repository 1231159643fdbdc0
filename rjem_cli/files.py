"""How files are written: whole or not at all, by one process at a time, and into folders that are ours."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from rjem_cli.errors import ConfigError, RjemError

BLOCK = 2**22  # bytes
LEFTOVER = re.compile(r"\..+\.[a-z0-9_]{8}|\.rjem-probe-\d+")  # of `replacing` and `check_writable`, after a kill
LOCK_PATIENCE = 0.5  # seconds between two calls of `waiting`


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


def check_file_place(flag: str, path: Path) -> None:
    """That a file can be written there once the work is done. Raises ConfigError for what is no file's name, RjemError
    where nothing can be written."""
    if path.name == "-":
        raise ConfigError(f"{flag} -: give a file's name")
    if path.is_dir():
        raise ConfigError(f"{flag} {path} is a folder; give a file's name")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ConfigError(f"{flag} {path} is a link or a device, which would be replaced; give a file's name")
    check_writable(make_dir(path.parent))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file beside `path` that takes its place, fsynced, once the body is done; nothing is left if it fails."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes private files; ours follow the umask
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_atomically(path: Path, content: bytes, *, read_back: bool = False) -> None:
    """Write beside `path`, fsync, rename: a reader, or a crash, sees the old file or the new one. With `read_back`,
    what the disk holds is compared before it takes the old file's place, and the new name is on the disk too. Raises
    RjemError."""
    make_dir(path.parent)
    with explained("write", path):
        with replacing(path) as file:
            file.write(content)
            if read_back:
                compare_with_disk(file, content)
        if read_back:
            sync_folder(path.parent)


def compare_with_disk(file: BinaryIO, content: bytes) -> None:
    """Raises OSError where a file just written reads otherwise."""
    file.flush()
    os.fsync(file.fileno())
    if hasattr(os, "posix_fadvise"):  # else what is read is the memory's copy
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    file.seek(0)
    expected = memoryview(content)
    for start in range(0, len(content), BLOCK):
        if file.read(BLOCK) != expected[start : start + BLOCK]:
            raise OSError(errno.EIO, "it reads back otherwise than it was written")


def sync_folder(folder: Path) -> None:
    """A rename is safe once its folder is; some file systems cannot say so."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raises RjemError where fewer than `needed` bytes are free."""
    with explained("look at", folder):
        free = shutil.disk_usage(folder).free
    if free < needed:
        raise RjemError(
            f"{what} needs {needed / 1e6:.1f} MB and {folder} has {free / 1e6:.1f} MB left; make batches, or move "
            "RJEM_HOME"
        )


def append_line(path: Path, line: str | None) -> None:
    """One line, whole or not at all, whoever else appends; None only tries whether it could. Raises RjemError."""
    if path.is_dir():
        raise RjemError(f"{path} is a folder; give a file's name")
    if line is None and not path.exists():
        check_writable(make_dir(path.parent))
        return
    with locked(path):
        if line is None:
            with explained("write", path), path.open("ab"):
                return
        append_text(path, line + "\n")


def append_text(path: Path, text: str) -> None:
    """Whole or not at all, by the one process that may write it. Raises RjemError."""
    with explained("write", path), path.open("ab", buffering=0) as file:
        before, rest = file.seek(0, os.SEEK_END), memoryview(text.encode())
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(before)
            raise


def csv_text(rows: Iterable[Sequence[object]]) -> bytes:
    """Rows as CSV. A class may be named after a folder whose name is not UTF-8."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", errors="surrogateescape")


def append_rows(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Append all rows to a CSV file, or none. Raises RjemError."""
    with explained("write", path), path.open("ab") as file:
        before = file.tell()
        try:
            file.write(csv_text(rows))
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
    called again and again until the lock is free, and may raise. Without `wait`, a lock that is held raises RjemError.
    The lock's file stays: were it removed, one process could hold the old file and another a new one of that name."""
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
        lock.release()
