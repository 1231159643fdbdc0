"""One published file: where it is, its checksum, and its download. It is downloaded once, under a lock, and never with
RJEM_OFFLINE."""

import contextlib
import hashlib
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from rjem_cli import files, paths
from rjem_cli.engine.callbacks import Log, OnProgress, noop
from rjem_cli.errors import AbsentError, RjemError

BLOCK = 2**20  # bytes
TIMEOUT = 30  # seconds without a byte


class RemoteFile(NamedTuple):
    """A published file, identified by its size and sha256."""

    file_name: str
    url: str
    size: int  # bytes
    sha256: str


def is_present(file: RemoteFile, folder: Path) -> bool:
    """Whether `folder` has a file of this name and size. Its content is checked when it is read."""
    with contextlib.suppress(OSError):
        return (folder / file.file_name).stat().st_size == file.size
    return False


def fetch_file(file: RemoteFile, folder: Path, on_progress: OnProgress = noop, warn: Log = noop) -> bytes:
    """The file's content, read from `folder`, or downloaded into it if it is missing or damaged there. `on_progress`
    (bytes) may raise, also while another process downloads the file; `warn` is called if the file cannot be saved.
    Raises AbsentError."""
    path, phase = folder / file.file_name, f"downloading {file.file_name}"
    if (content := read_intact(path, file)) is not None:
        return content
    if paths.offline():
        state = "is damaged" if path.exists() else "does not exist"
        raise AbsentError(f"{path} {state}, and RJEM_OFFLINE forbids the download")
    with files.locked(path, on_wait=lambda: on_progress(phase, 0, file.size)):
        if (content := read_intact(path, file)) is not None:  # another process downloaded it
            return content
        try:
            content = download(file, on_progress, phase)
        except (OSError, HTTPException) as error:  # URLError, timeouts and connection errors are OSErrors
            raise AbsentError(f"cannot download {file.url} ({error})") from None
        if not is_intact(content, file):
            raise AbsentError(f"{file.url} gave {len(content)} bytes that are not the published file")
        try:
            files.write_atomically(path, content, read_back=True)
        except RjemError as error:
            warn(f"{error}; the file is used now and downloaded again next time")
        return content


def read_intact(path: Path, file: RemoteFile) -> bytes | None:
    with contextlib.suppress(OSError):
        if is_intact(content := path.read_bytes(), file):
            return content
    return None


def is_intact(content: bytes, file: RemoteFile) -> bool:
    return len(content) == file.size and sha256_hex(content) == file.sha256


def download(file: RemoteFile, on_progress: OnProgress, phase: str) -> bytes:
    """The content behind the URL, at most one byte more than `file.size`."""
    content = bytearray()
    with urllib.request.urlopen(file.url, timeout=TIMEOUT) as response:
        while len(content) <= file.size and (block := response.read(min(BLOCK, file.size + 1 - len(content)))):
            content += block
            on_progress(phase, len(content), file.size)
    return bytes(content)


def sha256_hex(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
