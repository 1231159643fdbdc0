"""Files that everybody has, weights and data sets: downloaded once, under a lock, and known by size and sha256 before
anything reads them."""

from __future__ import annotations

import contextlib
import hashlib
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from rjem_cli import files, paths
from rjem_cli.engine.callbacks import noop
from rjem_cli.errors import AbsentError, RjemError

BLOCK = 2**20
TIMEOUT = 30  # seconds without a byte

Report = Callable[[int, int], None]  # bytes so far, and in all
Tell = Callable[[str], None]


class RemoteFile(NamedTuple):
    """Where a file comes from, and how it is known."""

    file_name: str
    url: str
    size: int  # bytes
    sha256: str


def is_there(file: RemoteFile, folder: Path) -> bool:
    """By its size alone, which takes no time."""
    with contextlib.suppress(OSError):
        return (folder / file.file_name).stat().st_size == file.size
    return False


def fetched(file: RemoteFile, folder: Path, report: Report = noop, tell: Tell = noop) -> bytes:
    """Its content, from the folder, else downloaded into it; a file there that is damaged is fetched again. `report`
    may raise, also while another process downloads it; `tell` hears of a folder that cannot keep it. Raises AbsentError
    with the reason where it cannot be had."""
    path = folder / file.file_name
    with files.locked(path, waiting=lambda: report(0, file.size)):
        with contextlib.suppress(OSError):
            content = path.read_bytes()
            if is_whole(content, file):
                return content
        if paths.offline():
            state = "is damaged" if path.exists() else "is not there"
            raise AbsentError(f"{path} {state}, and RJEM_OFFLINE forbids the download")
        try:
            content = download(file, report)
        except (OSError, HTTPException) as error:  # URLError, timeouts and connection errors among the former
            raise AbsentError(f"{file.file_name} cannot be downloaded ({error})") from None
        if not is_whole(content, file):
            raise AbsentError(f"{file.url} gave {len(content)} bytes that are not the published file")
        try:
            files.write_atomically(path, content, read_back=True)
        except RjemError as error:
            tell(f"{error}; it is used all the same, and downloaded again next time")
        return content


def is_whole(content: bytes, file: RemoteFile) -> bool:
    return len(content) == file.size and sha256_of(content) == file.sha256


def download(file: RemoteFile, report: Report) -> bytes:
    """At most one byte more than there should be."""
    content = bytearray()
    with urllib.request.urlopen(file.url, timeout=TIMEOUT) as answer:
        while len(content) <= file.size and (block := answer.read(min(BLOCK, file.size + 1 - len(content)))):
            content += block
            report(len(content), file.size)
    return bytes(content)


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
