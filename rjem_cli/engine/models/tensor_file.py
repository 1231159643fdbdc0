"""Tensors in a safetensors file with a description and a sha256 of both: a flipped bit anywhere is found before
anything is used. No pickle is read or written, and nothing in a description is executed or used as a path."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rjem_cli.errors import AbsentError, DataError, RjemError
from rjem_cli.files import write_atomically

METADATA_KEY = "rjem"  # one key: safetensors writes several in no fixed order, and equal runs should give equal files

Description = dict[str, Any]


def encode(tensors: dict[str, Tensor], description: Description) -> tuple[bytes, str]:
    """(the file's content, its sha256 of what it holds); equal for equal arguments."""
    held = {name: plain(tensor) for name, tensor in tensors.items()}
    sha256 = digest(held, description)
    sealed = {"sha256": sha256, "description_sha256": description_digest(description), "description": description}
    return safetensors.torch.save(held, {METADATA_KEY: json.dumps(sealed)}), sha256


def write_tensors(path: Path, tensors: dict[str, Tensor], description: Description) -> str:
    """Whole or not at all, and read back; gives the sha256 of what it holds. Raises RjemError."""
    content, sha256 = encode(tensors, description)
    write_atomically(path, content, read_back=True)
    return sha256


def read_tensors(path: Path, sha256: str | None = None) -> tuple[dict[str, Tensor], Description]:
    """(tensors on the host, description). Raises AbsentError for no file, DataError for one that is damaged, that rjem
    did not write, or that is not the one with this `sha256`."""
    with opened(path) as file:
        names = file.keys()
        sealed = sealed_part(file, path)
        # copies: safetensors gives views of the file, which somebody may yet shorten or change
        tensors = {name: file.get_tensor(name).clone() for name in names}
    if sealed["sha256"] != digest(tensors, sealed["description"]):
        raise DataError(f"{path} is damaged: its content is not what its sha256 says; use another checkpoint")
    check_sha256(path, sealed, sha256)
    return tensors, sealed["description"]


def read_description(path: Path, sha256: str | None = None) -> Description:
    """Read the description only, and check it. Compares the file's stored sha256 with `sha256`, but not with the
    tensors. Raises as `read_tensors` does."""
    with opened(path) as file:
        sealed = sealed_part(file, path)
    check_sha256(path, sealed, sha256)
    description: Description = sealed["description"]
    return description


def check_sha256(path: Path, sealed: dict[str, Any], sha256: str | None) -> None:
    """Raise DataError if the file's sha256 is not `sha256`."""
    if sha256 not in (None, sealed["sha256"]):
        raise DataError(f"{path} belongs to another checkpoint")


def sealed_part(file: Any, path: Path) -> dict[str, Any]:
    metadata = file.metadata() or {}
    if METADATA_KEY not in metadata:
        raise DataError(f"{path} is a safetensors file, but not an rjem checkpoint; give one that rjem train wrote")
    with contextlib.suppress(ValueError, RecursionError):
        sealed = json.loads(metadata[METADATA_KEY])
        if isinstance(sealed, dict) and isinstance(sealed.get("description"), dict) and "sha256" in sealed:
            if sealed.get("description_sha256") != description_digest(sealed["description"]):
                raise DataError(
                    f"{path} is damaged: its description is not what its sha256 says; use another checkpoint"
                )
            return sealed
    raise DataError(f"{path} has a description that rjem cannot read; use another checkpoint")


def description_digest(description: Description) -> str:
    """So that a description can be trusted without the tensors."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def digest(tensors: dict[str, Tensor], description: Description) -> str:
    """Of the description and of every tensor's name, type, shape and bytes."""
    found = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file. Raises AbsentError for no file, DataError for one that cannot be read or is no such file,
    RjemError for one that may not be read, and may well be whole."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except PermissionError as error:
        raise RjemError(f"cannot read checkpoint {path}: {error.strerror}; allow it, or give another") from None
    except OSError as error:
        absent = isinstance(error, FileNotFoundError)
        raise (AbsentError if absent else DataError)(f"cannot read checkpoint {path}: {error.strerror}") from None
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        # only a file that is not safetensors is asked what else it is: a safetensors header may begin with any byte
        if holds_arrays(path):
            raise DataError(f"{path} is an .npz, such as samples are; give a .safetensors file, or a run") from None
        if start[:2] == b"PK" or re.match(rb"\x80[\x02-\x05][^\x00]", start, re.DOTALL):
            raise DataError(
                f"{path} is a PyTorch pickle, which can run any code; rjem never loads those, give a .safetensors file"
            ) from None
        raise DataError(f"{path} is not a whole safetensors file ({error}); use another checkpoint") from None


def holds_arrays(path: Path) -> bool:
    """Whether it is a zip of NumPy's arrays."""
    with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        return any(name.endswith(".npy") for name in archive.namelist())
    return False


def plain(tensor: Tensor) -> Tensor:
    """Contiguous and on the host: what safetensors takes."""
    return tensor.detach().cpu().contiguous()
