"""Tensors in a safetensors file, with a description and a sha256 of both.

Reading finds any flipped bit before anything is used. No pickle is read or written, and nothing in a description is
executed or used as a path.
"""

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

METADATA_KEY = "rjem"  # the only one: safetensors writes several in no fixed order, and equal runs give equal files

Description = dict[str, Any]


def encode(tensors: dict[str, Tensor], description: Description) -> tuple[bytes, str]:
    """(the file, the sha256 of its tensors and description). Equal arguments give equal files."""
    tensors = {name: tensor.contiguous() for name, tensor in to_host(tensors).items()}
    sha256 = digest(tensors, description)
    header = {"sha256": sha256, "description_sha256": digest({}, description), "description": description}
    return safetensors.torch.save(tensors, {METADATA_KEY: json.dumps(header)}), sha256


def to_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies, or the tensors themselves if they are on the host. Those on a GPU are copied to pinned memory and waited
    for together."""
    copies = {name: tensor.detach().to("cpu", non_blocking=tensor.is_cuda) for name, tensor in tensors.items()}
    for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
        torch.cuda.synchronize(device)
    return copies


def write_tensors(path: Path, tensors: dict[str, Tensor], description: Description) -> str:
    """Write atomically and read back. Returns the sha256 that `read_tensors` can check. Raises RjemError."""
    content, sha256 = encode(tensors, description)
    write_atomically(path, content, read_back=True)
    return sha256


def read_tensors(path: Path, sha256: str | None = None) -> tuple[dict[str, Tensor], Description]:
    """(tensors on the host, description). Raises AbsentError for a missing file. Raises DataError for a file that is
    damaged, that rjem did not write, or that has another sha256."""
    with open_tensors(path) as file:
        header = read_header(file, path, sha256)
        # copies: safetensors returns views of the file, which another process may change
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    if header["sha256"] != digest(tensors, header["description"]):
        raise DataError(f"{path} is damaged: its content does not match its sha256; use another checkpoint")
    return tensors, header["description"]


def read_description(path: Path, sha256: str | None = None) -> Description:
    """Read and check the description. Compares the file's stored sha256 with `sha256`, but not with the tensors. Raises
    as `read_tensors` does."""
    with open_tensors(path) as file:
        return read_header(file, path, sha256)["description"]  # type: ignore[no-any-return]


def read_header(file: Any, path: Path, sha256: str | None) -> dict[str, Any]:
    """{sha256, description_sha256, description}, with a checked description."""
    metadata = file.metadata() or {}
    if METADATA_KEY not in metadata:
        raise DataError(f"{path} is a safetensors file, but not an rjem checkpoint; give one that rjem train wrote")
    header = None
    with contextlib.suppress(ValueError, RecursionError):
        header = json.loads(metadata[METADATA_KEY])
    if not isinstance(header, dict) or not isinstance(header.get("description"), dict) or "sha256" not in header:
        raise DataError(f"{path} has a description that rjem cannot read; use another checkpoint")
    if header.get("description_sha256") != digest({}, header["description"]):
        raise DataError(f"{path} is damaged: its description does not match its sha256; use another checkpoint")
    if sha256 not in (None, header["sha256"]):
        raise DataError(f"{path} belongs to another checkpoint")
    return header


def digest(tensors: dict[str, Tensor], description: Description) -> str:
    """sha256 of the description and of the name, type, shape and bytes of every tensor, each contiguous and on the
    host."""
    content = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        content.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        content.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file. Raises AbsentError for a missing file, RjemError for one that may not be read, and
    DataError for any other file that is unreadable or not safetensors."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        kinds = {FileNotFoundError: AbsentError, PermissionError: RjemError}  # an unreadable file may be intact
        raise kinds.get(type(error), DataError)(f"cannot read checkpoint {path}: {error.strerror}") from None
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:  # look at the start only now: a safetensors file may begin with any bytes
        reason = f"is not a valid safetensors file ({error}); use another checkpoint"
        if start[:2] == b"PK" or re.match(rb"\x80[\x02-\x05][^\x00]", start, re.DOTALL):
            reason = "is a PyTorch pickle, which can run any code; rjem import reads it without running it"
        with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            if any(name.endswith(".npy") for name in archive.namelist()):
                reason = "is an .npz file; give a .safetensors file or a run"
        raise DataError(f"{path} {reason}") from None
