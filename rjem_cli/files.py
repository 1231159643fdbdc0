"""Writing files: completely or not at all, by one process at a time, and only into folders of rjem's own files."""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from rjem_cli.errors import ConfigError, RjemError

BLOCK = 2**22  # bytes
LEFTOVER = re.compile(r"\..+\.[a-z0-9_]{8}|\.rjem-probe-\d+")  # temporary files that a killed process leaves behind
LOCK_SECONDS = 0.5  # between two calls of `on_wait`


@contextlib.contextmanager
def explained(action: str, path: Path | str) -> Iterator[None]:
    """Turn an OSError into an RjemError of one line: `cannot write out/1.png: No space left on device`."""
    try:
        yield
    except BrokenPipeError:  # the reader of a pipe has gone, which is no failure of the path
        raise
    except OSError as error:
        raise RjemError(
            f"cannot {action} {path}: {error.strerror or error}; choose another folder or free some space"
        ) from error


def make_dir(path: Path) -> Path:
    """Create a folder with its parents. Raises RjemError."""
    with explained("create folder", path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def lock_output_folder(
    folder: Path, flag: str, names: re.Pattern[str], document: str
) -> Iterator[dict[str, Any] | None]:
    """Create and lock a folder for results. Yields the content of its JSON `document` from an earlier call, None for an
    empty folder. Raises ConfigError and RjemError like check_output_folder, which runs before anything, even a lock, is
    written there."""
    check_output_folder(folder, flag, names, document)
    with locked(folder / document, wait=False):
        yield check_output_folder(folder, flag, names, document)


@contextlib.contextmanager
def empty_output_folder(
    folder: Path, flag: str, names: re.Pattern[str], document: str, request: tuple[str, Any], overwrite: bool
) -> Iterator[None]:
    """An empty folder that only this process may write. `request` is a key of the JSON `document` and its value in this
    call. Removes results if `overwrite` is set, or if they are of the same request but not "complete". Raises
    ConfigError for other results, and as `lock_output_folder` does."""
    with lock_output_folder(folder, flag, names, document) as earlier:
        if earlier is not None:
            is_unfinished = earlier.get(request[0]) == request[1] and not earlier.get("complete")
            if not overwrite and not is_unfinished:
                raise ConfigError(f"{flag} {folder} already has results; add --overwrite, or give another folder")
            clear_output_folder(folder, names)
        yield


def check_output_folder(folder: Path, flag: str, names: re.Pattern[str], document: str) -> dict[str, Any] | None:
    """Raises ConfigError if the folder holds a file whose path below it does not match `names`, or files without rjem's
    JSON `document`, since names such as 000001.png prove nothing; RjemError if it cannot be written."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{flag} {folder} is a file; give a folder")
    check_writable(make_dir(folder))
    with explained("write to", folder):
        paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
        present = [path.relative_to(folder).as_posix() for path in paths if not path.name.startswith(".")]
        if foreign := [name for name in present if not names.fullmatch(name)]:
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


def clear_output_folder(folder: Path, names: re.Pattern[str]) -> None:
    """Remove the results of an earlier call, and nothing else. Raises RjemError."""
    with explained("clear", folder):
        files = [path for path in folder.rglob("*") if names.fullmatch(path.relative_to(folder).as_posix())]
        for path in files:
            path.unlink()
        for parent in {path.parent for path in files} - {folder}:
            with contextlib.suppress(OSError):  # it holds a hidden file
                parent.rmdir()


def check_writable(folder: Path) -> None:
    """Fail before the work, not after it. Raises RjemError."""
    probe = folder / f".rjem-probe-{os.getpid()}"
    with explained("write to", folder):
        probe.write_bytes(b"")
        probe.unlink()


def check_output_file(flag: str, path: Path) -> None:
    """Check before the work that a file can be written. Raises ConfigError for an invalid path, else RjemError."""
    if path.name == "-":
        raise ConfigError(f"{flag} -: give a file's name")
    if path.is_dir():
        raise ConfigError(f"{flag} {path} is a folder; give a file's name")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ConfigError(f"{flag} {path} is a link or a device, which would be replaced; give a file's name")
    check_writable(make_dir(path.parent))


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside `path` that replaces it, fsynced, after the body; it is removed if the body fails."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~read_umask())  # mkstemp makes private files
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


@cache
def read_umask() -> int:
    """The umask of this process. Reading it means setting it, which other threads would notice, so it is read once."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_atomically(path: Path, content: bytes, *, read_back: bool = False) -> None:
    """Write beside `path`, fsync, rename: a reader, or a crash, sees the old file or the new one. With `read_back`, the
    new file is compared with its content on the disk before the rename, and the rename is fsynced. Raises RjemError."""
    make_dir(path.parent)
    with explained("write", path):
        with replace_file(path) as file:
            file.write(content)
            if read_back:
                compare_with_disk(file, content)
        if read_back:
            sync_folder(path.parent)


def json_digest(values: Any) -> str:
    """sha256 of the values as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Raises RjemError if the file cannot be read."""
    with explained("read", path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON document atomically. Raises RjemError."""
    write_atomically(path, json.dumps(document, indent=2).encode())


def compare_with_disk(file: BinaryIO, content: bytes) -> None:
    """Raises OSError if a file just written does not read back as its content."""
    file.flush()
    os.fsync(file.fileno())
    if hasattr(os, "posix_fadvise"):  # else the page cache is read, not the disk
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    file.seek(0)
    expected = memoryview(content)
    for start in range(0, len(content), BLOCK):
        if file.read(BLOCK) != expected[start : start + BLOCK]:
            raise OSError(errno.EIO, "it does not read back as it was written")


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable, where the file system supports it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raises RjemError if fewer than `needed` bytes are free."""
    with explained("read", folder):
        free = shutil.disk_usage(folder).free
    if free < needed:
        raise RjemError(
            f"{what} needs {needed / 1e6:.1f} MB, but {folder} has only {free / 1e6:.1f} MB left; free some space, "
            "or move RJEM_HOME"
        )


def append_line(path: Path, line: str | None) -> None:
    """Append one line to a file that several processes share; None only checks that it could. Raises RjemError."""
    if path.is_dir():
        raise RjemError(f"{path} is a folder; give a file's name")
    if line is None and not path.exists():
        check_writable(make_dir(path.parent))
        return
    with locked(path):
        append_text(path, "" if line is None else line + "\n")


def append_text(path: Path, text: str) -> None:
    """Append all of the text, or nothing. Only one process may write the file. Raises RjemError."""
    append_bytes(path, text.encode())


def append_rows(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Append all rows to a CSV file, or none. Only one process may write the file. Raises RjemError."""
    append_bytes(path, csv_text(rows))


def append_bytes(path: Path, content: bytes) -> None:
    with explained("write", path), path.open("ab", buffering=0) as file:
        size, rest = file.seek(0, os.SEEK_END), memoryview(content)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise


def csv_text(rows: Iterable[Sequence[object]]) -> bytes:
    """Rows as CSV. A class may be named after a folder whose name is not UTF-8."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", errors="surrogateescape")


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """One process at a time may write `path`. The operating system releases the lock of a process that died. `on_wait`
    is called repeatedly until the lock is free, and may raise. Without `wait`, a lock in use raises RjemError.

    The lock file stays. If it were removed, one process could lock the old file and another a new one of that name."""
    from filelock import FileLock, Timeout

    make_dir(path.parent)
    lock = FileLock(path.parent / f".{path.name}.lock")
    with explained("lock", path):
        while not lock.is_locked:
            try:
                lock.acquire(timeout=LOCK_SECONDS if wait else 0)
            except Timeout:  # a subclass of OSError
                if not wait:
                    raise RjemError(f"{path} is in use by another process; wait for it, or use another name") from None
                on_wait()
    try:
        yield
    finally:
        lock.release()
