"""Image files in a folder, a .zip or a tar, their decoding to pixels, and their resizing. Nothing is unpacked to disk,
and links inside archives are ignored."""

import contextlib
import functools
import io
import itertools
import os
import tarfile
import warnings
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rjem_cli.engine.data.png import from_image, to_image
from rjem_cli.engine.memory import physical_memory
from rjem_cli.errors import AbsentError, DataError
from rjem_cli.paths import existing_data

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
GREY_MODES = {"1", "L", "LA"}
# Figures that rjem writes beside samples, chains and attacked images
FIGURE_NAMES = set("grid.png film.png chains.gif energies.png curve.png examples.png nearest.png classes.png".split())
MAX_FILE_BYTES = 64 * 2**20
MAX_HEADER_BYTES = 2**16
MAX_IMAGE_PIXELS = 4096 * 4096
MAX_MEMORY_SHARE = 0.4  # for decoded images, which are then copied into one array
THREADS = 8  # Pillow decodes without Python's lock
LONG_NAME_TYPES = {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
LONG_HEADERS = LONG_NAME_TYPES | {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE}

ContentT = TypeVar("ContentT")
Member = tuple[str, bytes]  # name and content
NameFilter = Callable[[PurePosixPath], bool]


def is_image(name: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in name.parts)
    return name.suffix.lower() in IMAGE_SUFFIXES and not hidden


def check_readable(location: str) -> Path:
    """Raises AbsentError if nothing is there, DataError for a device or a pipe, which may never end."""
    path = existing_data(location)
    if not path.is_dir() and not path.is_file():
        raise DataError(f"{location} is neither a folder nor a file; give a folder, an archive or a file")
    return path


def read_once(read: Callable[[str, int | None], ContentT]) -> Callable[[str, int | None], ContentT]:
    """A reader of (location, image size) that reads an archive again only if it changed, because a comparison needs
    the training and the test images for each of its rows. Folders are always read."""

    @functools.lru_cache(maxsize=2)
    def read_archive(path: Path, location: str, image_size: int | None, mtime_ns: int, size: int) -> ContentT:
        return read(location, image_size)

    def read_or_recall(location: str, image_size: int | None) -> ContentT:
        path = check_readable(location)
        if path.is_dir():
            return read(location, image_size)
        status = path.stat()
        return read_archive(path.resolve(), location, image_size, status.st_mtime_ns, status.st_size)

    return read_or_recall


def read_members(path: Path, is_wanted: NameFilter = is_image) -> Iterator[Member]:
    """(name, content) of each wanted file in a folder or archive, in the order of the archive. Raises DataError."""
    with archive_errors(str(path)):
        if path.is_dir():
            for file in walk_files(path):
                name = file.relative_to(path).as_posix()
                if is_wanted(PurePosixPath(name)):
                    if not file.is_file():
                        raise DataError(f"{path}: {name} is not a file (a broken link?); remove it")
                    check_size(str(path), name, file.stat().st_size)
                    yield name, file.read_bytes()
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if is_wanted(PurePosixPath(info.filename)) and not info.is_dir():
                        check_size(str(path), info.filename, info.file_size)
                        yield info.filename, archive.read(info)
        else:
            with path.open("rb") as stream:
                yield from read_tar_members(stream, str(path), is_wanted)


def read_tar_members(file: BinaryIO, location: str, is_wanted: NameFilter = is_image) -> Iterator[Member]:
    """(name, content) of each wanted file in a tar stream, plain or compressed. Raises DataError."""
    stream = TarStream(file)
    with archive_errors(location):
        with tarfile.open(fileobj=stream, mode="r|*", tarinfo=CheckedHeader) as archive:  # type: ignore[call-overload]
            end = 0
            for member in archive:
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if is_wanted(PurePosixPath(member.name)) and member.isfile():
                    check_size(location, member.name, member.size)
                    yield member.name, archive.extractfile(member).read()
        stream.check_end(end)


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
    except (tarfile.TarError, zipfile.BadZipFile, LZMAError, EOFError, zlib.error, RuntimeError, UnicodeError) as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"cannot read {location} as .zip, .tar or .tar.xz ({reason}); is it complete?") from None
    except OSError as error:
        raise DataError(f"cannot read {error.filename or location}: {error.strerror or error}") from None


def walk_files(path: Path) -> Iterator[Path]:
    """Every file below a folder. Links to folders are followed, but each folder is visited once: links may form a
    circle."""
    visited = set()
    for folder, subfolders, names in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            subfolders.clear()
        else:
            visited.add(real)
            yield from (Path(folder, name) for name in names)


def check_size(location: str, name: str, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise DataError(f"{location}: {name} has {size} bytes, too many for an image; remove it")


def decode_images(
    members: Iterable[Member], location: str, hint: str, image_size: int | None = None
) -> tuple[list[str], Tensor]:
    """(names, pixels uint8 (N, C, H, W)), sorted by name, so that a folder, a .zip and a .tar give the same splits and
    scores. C is 1 if all images are grey, else 3. Images are resized if `image_size` is given. Raises AbsentError for
    no images (the message ends with the `hint`), and DataError for a corrupt image, for images of different sizes and
    for two images of the same name."""
    with warnings.catch_warnings():
        # Images that are too large are refused, and transparency is dropped, so these warnings of Pillow add nothing.
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", message="Palette images with Transparency", module="PIL")
        named_arrays = sorted(decode_in_order(members, location, image_size), key=lambda item: item[0])
    if not named_arrays:
        raise AbsentError(f"{location} holds no images; {hint}")
    names, arrays = [name for name, _ in named_arrays], [array for _, array in named_arrays]
    duplicate = next((name for name, following in itertools.pairwise(names) if name == following), None)
    if duplicate is not None:
        raise DataError(f"{location} contains {duplicate} twice; create it again")
    for name, array in zip(names, arrays):
        if array.shape[:2] != arrays[0].shape[:2]:
            size, expected = (f"{a.shape[1]}x{a.shape[0]}" for a in (array, arrays[0]))
            raise DataError(
                f"{location}: {name} is {size}, the images before it are {expected}; give images of one size, or add "
                f"--image-size {max(4, min(32, *(min(each.shape[:2]) for each in arrays)))} to resize them"
            )
    if any(array.ndim == 3 for array in arrays):
        arrays = [array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2) for array in arrays]
    else:
        arrays = [array[..., None] for array in arrays]
    return names, torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def decode_in_order(
    members: Iterable[Member], location: str, image_size: int | None
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, pixels) in the order of the members, decoded in threads. Only a few wait at a time, since an archive may
    be larger than memory, and an error in an early image is raised before the later ones are read. Raises DataError."""
    threads, size = min(THREADS, os.cpu_count() or 1), 0
    waiting: deque[tuple[str, Future[np.ndarray]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for member in itertools.chain(members, [None]):
                if member is not None:
                    name = f"{location}: {member[0]}"
                    waiting.append((member[0], pool.submit(decode_image, member[1], name, image_size)))
                while waiting and (member is None or len(waiting) > 2 * threads):
                    name, future = waiting.popleft()
                    array = future.result()
                    size += array.nbytes
                    check_memory(size, f"the images of {location}", "give fewer, or a smaller --image-size")
                    yield name, array
        finally:
            pool.shutdown(cancel_futures=True)


def check_memory(byte_count: int, what: str, remedy: str) -> None:
    """Raises DataError for decoded images that would take too much of this machine's memory."""
    memory = physical_memory()
    if memory is not None and byte_count > MAX_MEMORY_SHARE * memory:
        raise DataError(f"{what} do not fit into memory; {remedy}")


def decode_image(content: bytes, name: str, image_size: int | None = None) -> np.ndarray:
    """uint8 (H, W) for a grey image, else (H, W, 3), resized if `image_size` is given. Raises DataError with the file's
    name."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode.startswith(("I", "F")):
                raise DataError(f"{name} has more than 8 bits per channel ({image.mode}); convert it to 8 bits")
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise DataError(f"{name} is {image.width}x{image.height}, too large for a training image; remove it")
            converted = image.convert("L" if image.mode in GREY_MODES else "RGB")
            return np.asarray(converted if image_size is None else resize_image(converted, image_size))
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise many types on hostile bytes
        reason = str(error).split(" <")[0] or type(error).__name__
        raise DataError(f"{name} is corrupt or not an image ({reason}); remove or replace it") from None


def resize_image(image: Image.Image, size: int) -> Image.Image:
    """The central square, resized to `size` x `size` pixels (bicubic, antialiased). Pillow computes in integers, so the
    bytes are the same on every machine."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def resize_pixels(pixels: Tensor, size: int | None) -> Tensor:
    """`resize_image` for uint8 (N, C, H, W); None changes nothing."""
    if size is None or tuple(pixels.shape[2:]) == (size, size):
        return pixels
    check_memory(len(pixels) * pixels.shape[1] * size**2, f"{len(pixels)} images", f"lower --image-size {size}")
    resized = pixels.new_empty(*pixels.shape[:2], size, size)

    def fill(index: int) -> None:
        resized[index] = from_image(resize_image(to_image(pixels[index]), size))

    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        deque(pool.map(fill, range(len(pixels))), maxlen=0)  # raises what a thread raised
    return resized
