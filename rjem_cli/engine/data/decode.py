"""Image files to pixels, and the resizing of pixels.

The first frame of an image is taken, upright as its orientation tag (EXIF or XMP) says, in 8 bits per channel.
Transparent parts show a white background.
"""

import io
import itertools
import logging
import os
import re
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from rjem_cli.engine.data.archives import LFS_SIGNATURE, Member
from rjem_cli.engine.data.png import from_image, to_image
from rjem_cli.engine.memory import memory_limit
from rjem_cli.errors import AbsentError, DataError

# Not EPS, which Pillow passes to another program, and not HDF5 or MPEG, which do not hold photographs
FORMATS = "AVIF BMP DDS DIB GIF ICO JPEG JPEG2000 PCX PNG PPM PSD QOI SGI TGA TIFF WEBP".split()
BITS_PER_SAMPLE = 258  # a tag of TIFF
WITHOUT_SIGNATURE = {"DIB", "ICO", "PCX", "TGA"}  # or with one so short that other files have it, too
SIGNATURE_BYTES = 16
HEIC_SIGNATURES = {b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc"}
GREY_MODES = {"1", "L", "LA", "La"}
BACKGROUND = (255, 255, 255, 255)  # white
MAX_IMAGE_PIXELS = 4096 * 4096
MAX_RESIZED_PIXELS = 2**27  # of an image that is resized at once; a phone's has up to 108 million
MAX_MEMORY_SHARE = 0.4  # for decoded images, which are then copied into one array
THREADS = 8  # Pillow decodes without Python's lock

logging.getLogger("PIL").addHandler(logging.NullHandler())  # its messages would go to stderr


class Decoded(NamedTuple):
    """uint8 (H, W) for a grey image, else (H, W, 3). `has_more_frames`: whether the file has further images."""

    array: np.ndarray
    has_more_frames: bool


class DecodedImages(NamedTuple):
    """pixels: uint8 (N, C, H, W), C is 1 if all images are grey, else 3. `animations`: files with further frames."""

    names: list[str]
    pixels: Tensor
    animations: int


def decode_images(members: Iterable[Member], location: str, hint: str, image_size: int | None = None) -> DecodedImages:
    """Images sorted by name, so that a folder, a .zip and a .tar give the same splits and scores. They are resized if
    `image_size` is given. Raises AbsentError for no images (the message ends with the `hint`), and DataError for a
    corrupt image, for images of different sizes and for two images of the same name."""
    with warnings.catch_warnings():
        # Images that are too large are refused; what else Pillow warns of (damaged EXIF data) does not change pixels.
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module=r"PIL\.")
        decoded = sorted(decode_in_order(members, location, image_size), key=lambda item: item[0])
    if not decoded:
        raise AbsentError(f"{location} holds no images; {hint}")
    names, arrays = [name for name, _ in decoded], [image.array for _, image in decoded]
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
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    return DecodedImages(names, pixels, sum(image.has_more_frames for _, image in decoded))


def decode_in_order(members: Iterable[Member], location: str, image_size: int | None) -> Iterator[tuple[str, Decoded]]:
    """(name, image) in the order of the members, decoded in threads. Only a few wait at a time, since an archive may be
    larger than memory, and an error in an early image is raised before the later ones are read. Raises DataError."""
    threads, size = min(THREADS, os.cpu_count() or 1), 0
    waiting: deque[tuple[str, Future[Decoded]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for member in itertools.chain(members, [None]):
                if member is not None:
                    name = f"{location}: {member[0]}"
                    waiting.append((member[0], pool.submit(decode_image, member[1], name, image_size)))
                while waiting and (member is None or len(waiting) > 2 * threads):
                    name, future = waiting.popleft()
                    image = future.result()
                    size += image.array.nbytes
                    check_memory(size, f"the images of {location}", "give fewer, or a smaller --image-size")
                    yield name, image
        finally:
            pool.shutdown(cancel_futures=True)


def check_memory(byte_count: int, what: str, remedy: str) -> None:
    """Raises DataError for decoded images that would take too much of this machine's memory."""
    memory = memory_limit()
    if memory is not None and byte_count > MAX_MEMORY_SHARE * memory:
        raise DataError(f"{what} do not fit into memory; {remedy}")


def has_signature(content: bytes) -> bool:
    """Whether a file without a suffix begins like an image."""
    Image.init()
    prefix = content[:SIGNATURE_BYTES].ljust(SIGNATURE_BYTES, b"\0")
    accepts = [Image.OPEN[name][1] for name in FORMATS if name not in WITHOUT_SIGNATURE]
    return any(accept is not None and accept(prefix) is True for accept in accepts)


def decode_image(content: bytes, name: str, image_size: int | None = None) -> Decoded:
    """The first frame, resized if `image_size` is given. Raises DataError with the file's name."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.mode.startswith(("I", "F")) or is_deep(image):  # Pillow cuts colours of 16 bits to 8
                raise DataError(f"{name} has more than 8 bits per channel; convert it to 8 bits")
            if image.width * image.height > (MAX_RESIZED_PIXELS if image_size else MAX_IMAGE_PIXELS):
                remedy = "remove it" if image_size else "add --image-size 32 to resize it"
                raise DataError(f"{name} is {image.width}x{image.height}, too large for a training image; {remedy}")
            # A JPEG of a phone (MPO) holds previews of the same picture
            has_more_frames = image.format != "MPO" and getattr(image, "is_animated", False)
            converted = flatten(turn_upright(image))
            array = np.asarray(converted if image_size is None else resize_image(converted, image_size))
            return Decoded(array, has_more_frames)
    except DataError:
        raise
    except UnidentifiedImageError:
        if content.startswith(LFS_SIGNATURE):
            raise DataError(f"{name} is a pointer of Git LFS; run git lfs pull first") from None
        if content[4:12] in HEIC_SIGNATURES:
            raise DataError(f"{name} is a HEIC image; convert it to JPEG or PNG") from None
        raise DataError(f"{name} is corrupt or not an image; remove or replace it") from None
    except Exception as error:  # Pillow's decoders raise many types on hostile bytes
        reason = str(error).split(" <")[0] or type(error).__name__
        raise DataError(f"{name} is corrupt or not an image ({reason}); remove or replace it") from None


def is_deep(image: Image.Image) -> bool:
    """Whether the file has more than 8 bits per channel, which Pillow cuts to 8: by raw modes such as `RGB;16B`, by the
    bits that a TIFF states, or by the highest value of a PPM."""
    if isinstance(image, TiffImageFile):
        return bool(max(image.tag_v2.get(BITS_PER_SAMPLE, (1,))) > 8)
    tiles: list[Any] = getattr(image, "tile", None) or []
    arguments = [part for *_, last in tiles for part in (last if isinstance(last, tuple) else (last,))]
    if image.format == "PPM":
        return any(type(part) is int and part > 255 for part in arguments)
    return any(isinstance(part, str) and re.search(r";L?16", part) for part in arguments)


def turn_upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation shows it; as it is, if the EXIF data cannot be read."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow's EXIF reader raises many types on damaged data
        return image


def flatten(image: Image.Image) -> Image.Image:
    """An image of any mode on the background, in 8 bits: L if it is grey, else RGB."""
    mode = "L" if image.mode in GREY_MODES else "RGB"
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        if layer.getchannel("A").getextrema() == (0, 0):  # some programs leave alpha at 0 where they do not use it
            return layer.convert("RGB").convert(mode)
        image = Image.alpha_composite(Image.new("RGBA", layer.size, BACKGROUND), layer)
    return image.convert(mode)


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
