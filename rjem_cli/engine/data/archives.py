"""The files in a folder, a .zip or a tar. Nothing is unpacked to disk. What is passed over is counted."""

import bz2
import contextlib
import functools
import gzip
import io
import lzma
import os
import tarfile
import unicodedata
import zipfile
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from stat import S_ISLNK
from typing import Any, BinaryIO, TypeVar, cast

from rjem_cli.errors import DataError
from rjem_cli.paths import existing_data

IMAGE_SUFFIXES = set(
    ".apng .avif .avifs .bmp .dds .dib .gif .ico .j2c .j2k .jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .mpo .pbm .pcx "
    ".pgm .png .pnm .ppm .psd .qoi .sgi .tga .tif .tiff .webp".split()
)
# Folders of operating systems and file servers: trash, thumbnails, snapshots
SYSTEM_FOLDERS = set(
    "__macosx @eadir @recycle @recently-snapshot @tmp #recycle #snapshot $recycle.bin recycler lost+found "
    "lost.dir".split()
) | {"system volume information", "network trash folder"}
SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
# Figures that rjem writes beside samples, chains and attacked images
FIGURE_NAMES = set("grid.png film.png chains.gif energies.png curve.png examples.png nearest.png classes.png".split())
LFS_SIGNATURE = b"version https://git-lfs"
UNREADABLE_FORMATS = {
    b"Rar!": ("a .rar file", "unpack it"),
    b"7z\xbc\xaf": ("a .7z file", "unpack it"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "unpack it"),
    b"\x04\x22\x4d\x18": ("compressed with lz4", "unpack it"),
    b"PAR1": ("a parquet file", "export its images as files"),
    LFS_SIGNATURE: ("a pointer of Git LFS", "run git lfs pull"),
}
LONGEST_SIGNATURE = max(map(len, UNREADABLE_FORMATS))  # bytes
MAX_FILE_BYTES = 64 * 2**20
MAX_HEADER_BYTES = 2**16
STREAM_ERRORS = (gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError)
LONG_NAME_TYPES = {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
LONG_HEADERS = LONG_NAME_TYPES | {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE}

ContentT = TypeVar("ContentT")
Member = tuple[str, bytes]  # name and content


def is_image(name: PurePosixPath) -> bool:
    return name.suffix.lower() in IMAGE_SUFFIXES


def is_hidden(name: PurePosixPath) -> bool:
    """Whether a file is hidden, or made by an operating system or a file server."""
    folders = [part.lower() for part in name.parts]
    hidden = any(part.startswith(".") or part in SYSTEM_FOLDERS for part in folders)
    return hidden or folders[-1] in SYSTEM_FILES


def clean_name(name: str) -> PurePosixPath:
    """The name of a member as a relative path, also for `C:\\photos\\1.png` and `/photos/./1.png`. In Unicode's
    composed form, since macOS decomposes names."""
    path = unicodedata.normalize("NFC", name)
    parts = (path if "/" in path else path.replace("\\", "/")).split("/")
    return PurePosixPath(*(part for part in parts if part not in ("", ".", "..")))


@dataclass
class Selection:
    """Which files are read: images, files without a suffix, which may be images, and those of at most `text_limit`
    bytes, which is 0 for files that describe no images. The others are counted in `skipped`, by what they are.
    `undecodable_name`: a name in an unknown encoding."""

    text_limit: Callable[[PurePosixPath], int]
    skipped: Counter[str] = field(default_factory=Counter)
    undecodable_name: str = ""

    def accepts(self, location: str, name: PurePosixPath, size: int) -> bool:
        """Raises DataError for an image or a table that is too large."""
        if not name.parts or is_hidden(name):
            self.skipped["hidden or of the system"] += 1
            return False
        limit = MAX_FILE_BYTES if is_image(name) or not name.suffix else self.text_limit(name)
        if size > limit == MAX_FILE_BYTES and name.suffix:
            raise DataError(f"{location}: {name} has {size} bytes, more than the {MAX_FILE_BYTES} allowed; remove it")
        if size > limit or not limit:
            self.skipped[name.suffix.lower() or "without a suffix"] += 1
            return False
        return True


def check_readable(location: str) -> Path:
    """Raises AbsentError if nothing is there, DataError for a device or a pipe, which may never end."""
    path = existing_data(location)
    if not path.is_dir() and not path.is_file():
        raise DataError(f"{location} is neither a folder nor a file; give a folder, an archive or a file")
    return path


def cache_archives(read: Callable[[str, int | None], ContentT]) -> Callable[[str, int | None], ContentT]:
    """Cache a reader of (location, image size): an archive is read again only if it changed, a folder always. A
    comparison reads the same archive for each row."""

    @functools.lru_cache(maxsize=2)
    def read_archive(path: Path, location: str, image_size: int | None, mtime_ns: int, size: int) -> ContentT:
        return read(location, image_size)

    def read_cached(location: str, image_size: int | None) -> ContentT:
        path = check_readable(location)
        if path.is_dir():
            return read(location, image_size)
        status = path.stat()
        return read_archive(path.resolve(), location, image_size, status.st_mtime_ns, status.st_size)

    return read_cached


def read_members(path: Path, selection: Selection) -> Iterator[Member]:
    """(name, content) of each selected file in a folder or archive, in the order of the archive. Raises DataError."""
    location = str(path)
    with archive_errors(location):
        if path.is_dir():
            for file in walk_files(path, selection):
                name = PurePosixPath(unicodedata.normalize("NFC", file.relative_to(path).as_posix()))
                size = file.stat().st_size if file.is_file() else 0
                if selection.accepts(location, name, size):
                    if not file.is_file():
                        raise DataError(f"{path}: {name} is not a file (a broken link?); remove it")
                    yield str(name), file.read_bytes()
        elif not is_tar(path) and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    name = clean_name(zip_name(info, selection))
                    if S_ISLNK(info.external_attr >> 16):
                        selection.skipped["links or devices"] += 1
                    elif not info.is_dir() and selection.accepts(location, name, info.file_size):
                        yield str(name), archive.read(info)
        else:
            with path.open("rb") as stream:
                check_archive_kind(location, stream.peek(LONGEST_SIGNATURE))
                yield from read_tar_members(stream, location, selection)


def is_tar(path: Path) -> bool:
    """Whether it begins like a plain tar, whose last member may be a zip."""
    with path.open("rb") as stream:
        return stream.read(262).endswith(b"ustar")


def check_archive_kind(location: str, head: bytes) -> None:
    """Raises DataError for an archive of a kind that is not read."""
    for signature, (kind, remedy) in UNREADABLE_FORMATS.items():
        if head.startswith(signature):
            raise DataError(f"{location} is {kind}, which rjem does not read; {remedy} first")


def zip_name(info: zipfile.ZipInfo, selection: Selection) -> str:
    """The member's name. zipfile reads UTF-8 without its flag as code page 437; this undoes that."""
    if info.flag_bits & 0x800 or info.filename.isascii():
        return info.filename
    with contextlib.suppress(UnicodeError):
        return info.filename.encode("cp437").decode("utf-8")
    selection.undecodable_name = info.filename
    return info.filename


def read_tar_members(file: BinaryIO, location: str, selection: Selection) -> Iterator[Member]:
    """(name, content) of each selected file in a tar stream, plain or compressed. Raises DataError."""
    with archive_errors(location):
        stream = TarStream(decompress(file))
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=CheckedHeader) as archive:  # type: ignore[call-overload]
            end = 0
            for member in archive:
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                name = clean_name(member.name)
                if member.isfile() and selection.accepts(location, name, member.size):
                    yield str(name), archive.extractfile(member).read()
                elif not member.isfile() and not member.isdir():
                    selection.skipped["links or devices"] += 1
        stream.check_end(end)


def decompress(file: BinaryIO) -> BinaryIO:
    """The content of a gzip, bzip2 or xz file, with its checksums; another file as it is. (tarfile's own decompression
    takes a truncated stream for the end of the archive.)"""
    buffered: Any = file if hasattr(file, "peek") else io.BufferedReader(file)  # type: ignore[type-var]
    head = buffered.peek(6)[:6]
    for signature, module in ((b"\x1f\x8b", gzip), (b"BZh", bz2), (b"\xfd7zXZ\0", lzma)):
        if head.startswith(signature):
            return cast(BinaryIO, module.open(buffered))
    return cast(BinaryIO, buffered)


class CheckedHeader(tarfile.TarInfo):
    """Limits the size of long names and pax headers, which tarfile reads into memory by itself."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "CheckedHeader":
        header = super().frombuf(buf, encoding, errors)
        if header.type in LONG_HEADERS and header.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header has {header.size} bytes")
        return header


class TarStream:
    """Finds a truncated or damaged tar, where tarfile sees the end of the archive. A plain tar ends in two or more zero
    blocks, and only zeros follow its last member."""

    def __init__(self, file: BinaryIO):
        self.file, self.length, self.content_end = file, 0, 0
        self.is_plain: bool | None = None

    def read(self, size: int) -> bytes:
        content = self.file.read(size)
        if self.is_plain is None:
            self.is_plain = content[257:262] == b"ustar"
        if stripped := content.rstrip(b"\0"):
            self.content_end = self.length + len(stripped)
        self.length += len(content)
        return content

    def check_end(self, members_end: int) -> None:
        """Raises ReadError. `members_end` is the end of the last member that was read."""
        while self.read(2**20):
            pass
        if self.is_plain and self.length < members_end + 2 * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("the end of the archive is missing")
        if self.is_plain and self.content_end > members_end:
            raise tarfile.ReadError("the part after the last readable member is damaged")


@contextlib.contextmanager
def archive_errors(location: str) -> Iterator[None]:
    """Turn the errors of the archive libraries into DataErrors."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, *STREAM_ERRORS, RuntimeError, UnicodeError) as error:
        reason = str(error) or type(error).__name__
        if "encrypted" in reason:
            raise DataError(f"{location} is encrypted; unpack it first") from None
        raise DataError(
            f"{location} is not a complete .zip, .tar or .tar.xz ({reason}); download or create it again"
        ) from None
    except OSError as error:
        raise DataError(f"cannot read {error.filename or location}: {error.strerror or error}") from None


def walk_files(path: Path, selection: Selection) -> Iterator[Path]:
    """Every file below a folder. Links to folders are followed, the outer ones first, but no folder is visited twice:
    links may form a circle."""

    def fail(error: OSError) -> None:
        raise error

    visited, waiting = set(), deque([path])
    while waiting:
        for folder, subfolders, names in os.walk(waiting.popleft(), onerror=fail):
            real = os.path.realpath(folder)
            if real in visited:
                selection.skipped["folders linked twice"] += 1
                subfolders.clear()
                continue
            visited.add(real)
            subfolders.sort()
            waiting.extend(link for name in subfolders if (link := Path(folder, name)).is_symlink())
            yield from (Path(folder, name) for name in names)
