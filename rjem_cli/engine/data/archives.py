"""The files of a folder, a .zip or a tar, one after another, as bytes. Nothing is unpacked to disk; links inside
archives are passed over."""

from __future__ import annotations

import contextlib
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from rjem_cli.errors import DataError
from rjem_cli.paths import existing_data

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
LARGEST_FILE = 64 * 2**20  # bytes; anything larger is no training image
# Pictures that rjem leaves among samples, chains and attacked images, and that are none of them
OVERVIEWS = {
    "grid.png",
    "film.png",
    "chains.gif",
    "energies.png",
    "curve.png",
    "examples.png",
    "nearest.png",
    "classes.png",
}
LARGEST_HEADER = 2**16  # bytes
READ_WHOLE = {
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
}
TAR_END = 2 * tarfile.BLOCKSIZE

Wanted = Callable[[PurePosixPath], bool]


def is_image(name: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in name.parts)
    return name.suffix.lower() in IMAGE_SUFFIXES and not hidden


def readable(location: str) -> Path:
    """Raises AbsentError for nothing there, DataError for a device or a pipe, which may never end."""
    path = existing_data(location)
    if not path.is_dir() and not path.is_file():
        raise DataError(f"{location} is neither a folder nor a file; give one of them")
    return path


def read_members(path: Path, wanted: Wanted = is_image) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every file that is wanted, in the order in which they lie there. Raises DataError."""
    with archive_errors(str(path)):
        if path.is_dir():
            for file in files_below(path):
                name = PurePosixPath(file.relative_to(path).as_posix())
                if wanted(name):
                    if not file.is_file():
                        raise DataError(f"{path}: {name} is no file that can be read (a broken link?); remove it")
                    check_size(str(path), str(name), file.stat().st_size)
                    yield str(name), file.read_bytes()
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if wanted(PurePosixPath(info.filename)) and not info.is_dir():
                        check_size(str(path), info.filename, info.file_size)
                        yield info.filename, archive.read(info)
        else:
            with path.open("rb") as stream:
                yield from tar_members(stream, str(path), wanted)


def tar_members(file: BinaryIO, name: str, wanted: Wanted = is_image) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every file that is wanted in a tar, plain or compressed, on a stream. Raises DataError."""
    stream = TarStream(file)
    with archive_errors(name):
        with tarfile.open(fileobj=stream, mode="r|*", tarinfo=CheckedHeader) as archive:  # type: ignore[call-overload]
            end = 0
            for member in archive:
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if wanted(PurePosixPath(member.name)) and member.isfile():
                    check_size(name, member.name, member.size)
                    content = archive.extractfile(member)
                    assert content is not None
                    yield member.name, content.read()
        stream.check_end(end)


class CheckedHeader(tarfile.TarInfo):
    """A member whose header is no bomb: long names and pax headers are read whole before anybody can look at them."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> CheckedHeader:
        header = super().frombuf(buf, encoding, errors)
        if header.type in READ_WHOLE and header.size > LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


class TarStream:
    """tarfile takes a damaged header, and the end of the file, for the end of the archive. A plain tar ends in two zero
    blocks or more, and nothing but zeros lies behind its last member."""

    def __init__(self, file: BinaryIO):
        self.file, self.tail, self.length, self.content_end = file, b"", 0, 0
        self.plain: bool | None = None

    def read(self, size: int) -> bytes:
        content = self.file.read(size)
        if self.plain is None:
            self.plain = content[257:262] == b"ustar"
        kept = content.rstrip(b"\0")
        self.content_end = self.length + len(kept) if kept else self.content_end
        self.length += len(content)
        return content

    def check_end(self, members_end: int) -> None:
        """`members_end`, where the last member that was read ends. Raises ReadError."""
        while self.read(2**20):
            pass
        if not self.plain:
            return
        if self.length < members_end + TAR_END:
            raise tarfile.ReadError("the end of the archive is missing")
        if self.content_end > members_end:
            raise tarfile.ReadError("something behind its last readable member is damaged")


@contextlib.contextmanager
def archive_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        LZMAError,
        EOFError,
        zlib.error,
        RuntimeError,
        UnicodeError,
    ) as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{name} cannot be read as a .zip, .tar or .tar.xz ({reason}); is it whole?") from None
    except OSError as error:
        raise DataError(f"cannot read {error.filename or name}: {error.strerror or error}") from None


def files_below(path: Path) -> Iterator[Path]:
    """Every file, also behind links to folders, but each folder once: links may run in circles."""
    seen = set()
    for folder, below, names in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        yield from (Path(folder, name) for name in names)


def check_size(place: str, name: str, size: int) -> None:
    if size > LARGEST_FILE:
        raise DataError(f"{place}: {name} has {size} bytes, too many for an image; remove it")
