"""Files of weights that come from elsewhere: checked by size and sha256 before they are read, and read as tensors only,
so that a file cannot run code."""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
import urllib.request
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rjem_cli import paths
from rjem_cli.errors import AbsentError, DataError, RjemError

BLOCK = 2**20
TIMEOUT = 30  # seconds without a byte


class Published(NamedTuple):
    """A file that everybody has: where it comes from, and how it is known."""

    file_name: str
    url: str
    size: int  # bytes
    sha256: str


INCEPTION = Published(
    "weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    95_628_359,
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)


def in_cache(file: Published) -> bool:
    with contextlib.suppress(OSError):
        return (paths.weights_dir() / file.file_name).stat().st_size == file.size
    return False


def published_weights(file: Published, report: Callable[[int, int], None]) -> bytes:
    """From the cache, else downloaded; a file there that is damaged is fetched again. Raises AbsentError with the
    reason where that cannot be."""
    path = paths.weights_dir() / file.file_name
    with paths.locked(path, waiting=lambda: report(0, file.size)):
        with contextlib.suppress(OSError):
            content = path.read_bytes()
            if is_whole(content, file):
                return content
        if paths.offline():
            state = "is damaged" if path.exists() else "is not there"
            raise AbsentError(f"{path} {state}, and RJEM_OFFLINE forbids the download")
        try:
            content = download(file, report)
        except OSError as error:  # URLError, timeouts and connection errors among them
            raise AbsentError(f"{file.file_name} cannot be downloaded ({error})") from None
        if not is_whole(content, file):
            raise AbsentError(f"{file.url} gave {len(content)} bytes that are not the published weights")
        with contextlib.suppress(RjemError):  # a place that cannot be written keeps no weights, and needs none
            paths.write_atomically(path, content)
        return content


def is_whole(content: bytes, file: Published) -> bool:
    return len(content) == file.size and sha256_of(content) == file.sha256


def download(file: Published, report: Callable[[int, int], None]) -> bytes:
    """At most one byte more than there should be."""
    content = bytearray()
    with urllib.request.urlopen(file.url, timeout=TIMEOUT) as answer:
        while len(content) <= file.size and (block := answer.read(min(BLOCK, file.size + 1 - len(content)))):
            content += block
            report(len(content), file.size)
    return bytes(content)


def read_weights(location: str) -> bytes:
    """A user's own file. Raises AbsentError or DataError."""
    try:
        return paths.expand(location).read_bytes()
    except FileNotFoundError:
        raise AbsentError(f"--features {location} is not there; give inception, dinov2, judge or a file") from None
    except OSError as error:
        raise DataError(f"cannot read {location}: {error.strerror or error}") from None


def tensors_of(content: bytes, name: str) -> dict[str, Tensor]:
    """A PyTorch state dict. Raises DataError for a file that is damaged, or holds anything but tensors."""
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise DataError(
            f"{name} is damaged, or holds more than tensors and could run code, so it was not loaded; give another file"
        ) from None
    except Exception as error:  # torch raises many types on damaged bytes; all mean the same here
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"{name} is no whole file of PyTorch weights ({reason}); fetch it again") from None
    if not isinstance(state, dict) or not all(isinstance(key, str) and isinstance(state[key], Tensor) for key in state):
        raise DataError(f"{name} holds no plain state dict of tensors; give another file")
    return state


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
