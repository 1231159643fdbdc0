"""From the bytes of image files to pixels, on all cores."""

from __future__ import annotations

import io
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rjem_cli.engine.memory import physical_memory
from rjem_cli.errors import DataError

GREY_MODES = {"1", "L", "LA"}
THREADS = 8  # Pillow decodes without Python's lock
LARGEST_IMAGE = 4096 * 4096  # pixels; anything larger is no training image
MOST_OF_MEMORY = 0.4  # of it, for decoded images, which are then copied into one array


class Decoded(NamedTuple):
    """Images of one size, sorted by name: uint8 (H, W) for grey ones, (H, W, 3) for others. One order for folder, .zip
    and .tar, so that they give one split, one digest and one score."""

    names: list[str]
    arrays: list[np.ndarray]


def decode_all(members: Iterable[tuple[str, bytes]], place: str) -> Decoded:
    """Raises DataError for an image that is corrupt or not of the first one's size, with its name."""
    in_order = sorted(decoded_in_turn(members, place), key=lambda item: item[0])
    names, arrays = [name for name, _ in in_order], [array for _, array in in_order]
    twice = next((name for name, other in itertools.pairwise(names) if name == other), None)
    if twice is not None:
        raise DataError(f"{place} holds {twice} twice; write it again")
    for name, array in zip(names, arrays):
        if array.shape[:2] != arrays[0].shape[:2]:
            found, wanted = (f"{a.shape[1]}x{a.shape[0]}" for a in (array, arrays[0]))
            raise DataError(f"{place}: {name} is {found}, the images before it are {wanted}; give images of one size")
    return Decoded(names, arrays)


def decoded_in_turn(members: Iterable[tuple[str, bytes]], place: str) -> Iterator[tuple[str, np.ndarray]]:
    """(name, pixels) in the order of the members. Few of them wait at a time: an archive may hold more than memory
    does, and what is wrong with its first image is said before its last one is read. Raises DataError."""
    threads, size = min(THREADS, os.cpu_count() or 1), 0
    memory = physical_memory()
    waiting: deque[tuple[str, Future[np.ndarray]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for member in itertools.chain(members, itertools.repeat(None)):
                if member is not None:
                    waiting.append((member[0], pool.submit(decode, member[1], f"{place}: {member[0]}")))
                while waiting and (member is None or len(waiting) > 2 * threads):
                    name, future = waiting.popleft()
                    array = future.result()
                    size += array.nbytes
                    if memory is not None and size > MOST_OF_MEMORY * memory:
                        raise DataError(f"the images of {place} do not fit into this machine's memory; give fewer")
                    yield name, array
                if member is None:
                    return
        finally:
            pool.shutdown(cancel_futures=True)


def stacked(arrays: list[np.ndarray]) -> Tensor:
    """uint8 (N, C, H, W); C is 1 if all are grey, and else grey ones get three equal channels."""
    if any(array.ndim == 3 for array in arrays):
        arrays = [array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2) for array in arrays]
    else:
        arrays = [array[..., None] for array in arrays]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def decode(content: bytes, name: str) -> np.ndarray:
    """uint8 (H, W) for grey images, (H, W, 3) for all others. Raises DataError with the file's name."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode.startswith(("I", "F")):
                raise DataError(f"{name} has more than 8 bits a channel ({image.mode}); convert it to 8 bits")
            if image.width * image.height > LARGEST_IMAGE:
                raise DataError(f"{name} is {image.width}x{image.height}, too large for a training image; remove it")
            return np.asarray(image.convert("L" if image.mode in GREY_MODES else "RGB"))
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise many types on hostile bytes; all mean the same here
        reason = str(error).split(" <")[0] or type(error).__name__
        raise DataError(f"{name} is corrupt or no image ({reason}); remove or replace it") from None
