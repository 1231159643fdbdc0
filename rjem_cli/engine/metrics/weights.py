"""Weights that come from elsewhere: read as tensors only, so that a file cannot run code."""

from __future__ import annotations

import io
import pickle

import torch
from torch import Tensor

from rjem_cli import paths
from rjem_cli.engine.data.downloads import RemoteFile
from rjem_cli.errors import AbsentError, DataError

INCEPTION = RemoteFile(
    "weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    95_628_359,
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)


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
