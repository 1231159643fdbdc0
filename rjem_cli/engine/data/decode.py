"""From the bytes of image files to pixels, on all cores."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rjem_cli.errors import DataError

GREY_MODES = {"1", "L", "LA"}
THREADS = 8  # Pillow decodes without Python's lock


class Decoded(NamedTuple):
    """Images of one size, sorted by name: uint8 (H, W) for grey ones, (H, W, 3) for others. One order for folder, .zip
    and .tar, so that they give one split, one digest and one score."""

    names: list[str]
    arrays: list[np.ndarray]


def decode_all(members: Iterable[tuple[str, bytes]], place: str) -> Decoded:
    """Raises DataError for an image that is corrupt or not of the first one's size, with its name."""
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        waiting = [(name, pool.submit(decode, content, f"{place}: {name}")) for name, content in members]
        waiting.sort(key=lambda item: item[0])
        try:
            arrays = [future.result() for _, future in waiting]
        except DataError:
            pool.shutdown(cancel_futures=True)
            raise
    names = [name for name, _ in waiting]
    twice = next((name for name, other in itertools.pairwise(names) if name == other), None)
    if twice is not None:
        raise DataError(f"{place} holds {twice} twice; write it again")
    for name, array in zip(names, arrays):
        if array.shape[:2] != arrays[0].shape[:2]:
            found, wanted = (f"{a.shape[1]}x{a.shape[0]}" for a in (array, arrays[0]))
            raise DataError(f"{place}: {name} is {found}, the images before it are {wanted}; give images of one size")
    return Decoded(names, arrays)


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
            return np.asarray(image.convert("L" if image.mode in GREY_MODES else "RGB"))
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise many types on hostile bytes; all mean the same here
        reason = str(error).split(" <")[0] or type(error).__name__
        raise DataError(f"{name} is corrupt or no image ({reason}); remove or replace it") from None
