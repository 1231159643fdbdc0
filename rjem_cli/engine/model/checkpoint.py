"""Checkpoints: the averaged network as one safetensors file with its config inside, and beside it the state to resume
from.

    step-00000600.safetensors        what samples and is tested; share this one
    step-00000600.state.safetensors  live weights, momentum, averages, replay buffer

No pickle is read or written. Nothing in a file's metadata is executed or used as a path to write to.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rjem_cli import __version__
from rjem_cli.config import TrainConfig
from rjem_cli.engine.data.images import Splits
from rjem_cli.engine.model.wide_resnet import WideResNet, build_model
from rjem_cli.errors import AbsentError, DataError, RjemError
from rjem_cli.paths import write_atomically

FORMAT = "rjem-checkpoint-1"
METADATA_KEY = "rjem"  # one key: safetensors writes several in no fixed order, and equal runs should give equal files


@dataclass(frozen=True)
class CheckpointInfo:
    """What a model needs to be used: its config, its classes, its images' shape (C, H, W) and its training data's
    digest."""

    config: TrainConfig
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    data_name: str
    data_digest: str
    step: int

    @classmethod
    def of(cls, config: TrainConfig, splits: Splits, step: int) -> CheckpointInfo:
        return cls(config, splits.class_names, splits.train.image_shape, splits.name, splits.train.digest(), step)

    def at(self, step: int) -> CheckpointInfo:
        return replace(self, step=step)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CheckpointInfo:
        channels, height, width = (int(size) for size in values["image_shape"])
        if min(channels, height, width) < 1:
            raise ValueError(f"image_shape {[channels, height, width]}")
        return cls(
            config=TrainConfig.from_dict(values["config"]),
            class_names=tuple(str(name) for name in values["class_names"]),
            image_shape=(channels, height, width),
            data_name=str(values["data_name"]),
            data_digest=str(values["data_digest"]),
            step=int(values["step"]),
        )


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    model: WideResNet
    info: CheckpointInfo

    def sha256(self) -> str:
        """Of the file: what a score or a sample came from."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def save_checkpoint(path: Path, model: torch.nn.Module, info: CheckpointInfo) -> None:
    """Write the network with its config. Raises RjemError, and leaves no part of a file, where that fails."""
    metadata = {METADATA_KEY: json.dumps({"format": FORMAT, "rjem": __version__, "info": info.to_dict()})}
    write_atomically(path, safetensors.torch.save(plain(model.state_dict()), metadata))


def load_checkpoint(path: Path, device: torch.device) -> Checkpoint:
    """Read a network. Raises AbsentError for no file, DataError for one that is not a checkpoint of rjem; pickles are
    never loaded."""
    tensors, metadata = read_safetensors(path)
    info = info_of(path, metadata)
    try:
        model = build_model(info.config, info.image_shape[0], len(info.class_names))
        model.load_state_dict(tensors)
    except (RuntimeError, ValueError, TypeError) as error:
        raise unfit(path, error) from None
    if not all_finite(tensors.values()):
        raise DataError(f"{path} holds weights that are not finite; use another checkpoint")
    return Checkpoint(path, model.to(device).eval(), info)


def read_info(path: Path) -> CheckpointInfo:
    """The description inside a checkpoint, without its weights. Raises as `load_checkpoint` does."""
    with opened(path) as file:
        return info_of(path, file.metadata() or {})


def info_of(path: Path, metadata: dict[str, Any]) -> CheckpointInfo:
    if METADATA_KEY not in metadata:
        raise DataError(f"{path} is a safetensors file, but not an rjem checkpoint; give one that rjem train wrote")
    try:
        header = json.loads(metadata[METADATA_KEY])
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']}, this rjem reads {FORMAT}")
        return CheckpointInfo.from_dict(header["info"])
    except (RjemError, KeyError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise unfit(path, error) from None


def unfit(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:200]
    return DataError(f"{path} does not fit its own description ({reason}); use another checkpoint")


def save_state(path: Path, tensors: dict[str, Tensor]) -> None:
    write_atomically(path, safetensors.torch.save(plain(tensors)))


def state_path(checkpoint: Path) -> Path:
    return checkpoint.with_suffix(".state.safetensors")


def all_finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors on the host, metadata). Raises AbsentError or DataError."""
    with opened(path) as file:
        names = file.keys()
        return {name: file.get_tensor(name) for name in names}, file.metadata() or {}


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file. Raises AbsentError for no file, DataError for one that cannot be read or is no such file."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        absent = isinstance(error, FileNotFoundError)
        raise (AbsentError if absent else DataError)(f"cannot read checkpoint {path}: {error.strerror}") from None
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        # only a file that is not safetensors is asked what else it is: a safetensors header may begin with any byte
        if start[:2] == b"PK" or re.match(rb"\x80[\x02-\x05][^\x00]", start, re.DOTALL):
            raise DataError(
                f"{path} is a PyTorch pickle, which can run any code; rjem never loads those, give a .safetensors file"
            ) from None
        raise DataError(f"{path} is not a whole safetensors file ({error}); use another checkpoint") from None


def plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous, on the host, sharing no memory: what safetensors takes."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
