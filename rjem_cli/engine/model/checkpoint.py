"""Checkpoints: the averaged network as one safetensors file with its config inside, and beside it the state to resume
from.

    step-00000600.safetensors        what samples and is tested; share this one
    step-00000600.state.safetensors  live weights, momentum, averages, replay buffer
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rjem_cli import __version__
from rjem_cli.config import TrainConfig
from rjem_cli.engine.data.images import Splits
from rjem_cli.engine.model.tensor_file import Description, read_description, read_tensors, write_tensors
from rjem_cli.engine.model.wide_resnet import WideResNet, build_model, channels_last
from rjem_cli.errors import DataError, RjemError

FORMAT = "rjem-checkpoint-3"
LARGEST_SIDE = 4096  # pixels


@dataclass(frozen=True)
class CheckpointInfo:
    """What a model needs to be used: its config, its classes, its images' shape (C, H, W) and its training data's
    digest; `val_accuracy` where it was measured when the checkpoint was due; what its state is known by."""

    config: TrainConfig
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    data_name: str
    data_digest: str
    step: int
    val_accuracy: float | None = None
    state_sha256: str | None = None

    @classmethod
    def of(cls, config: TrainConfig, splits: Splits, step: int) -> CheckpointInfo:
        return cls(config, splits.class_names, splits.train.image_shape, splits.name, splits.train.digest(), step)

    def at(self, step: int, val_accuracy: float | None) -> CheckpointInfo:
        return replace(self, step=step, val_accuracy=val_accuracy)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CheckpointInfo:
        channels, height, width = (int(size) for size in values["image_shape"])
        if channels not in (1, 3) or not 1 <= min(height, width) <= max(height, width) <= LARGEST_SIDE:
            raise ValueError(f"image_shape {[channels, height, width]}")
        "".join(str(name) for name in values["class_names"]).encode()  # a ValueError for what no file can hold
        if not re.fullmatch("[0-9a-f]{64}", str(values["data_digest"])):  # it names files
            raise ValueError("data_digest is no sha256")
        return cls(
            config=TrainConfig.from_dict(values["config"]),
            class_names=tuple(str(name) for name in values["class_names"]),
            image_shape=(channels, height, width),
            data_name=str(values["data_name"]),
            data_digest=str(values["data_digest"]),
            step=int(values["step"]),
            val_accuracy=None if values["val_accuracy"] is None else float(values["val_accuracy"]),
            state_sha256=None if values["state_sha256"] is None else str(values["state_sha256"]),
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


def save_checkpoint(path: Path, model: nn.Module, info: CheckpointInfo) -> None:
    """Write the network with its config. Raises RjemError, and leaves no part of a file, where that fails."""
    write_tensors(path, model.state_dict(), {"format": FORMAT, "rjem": __version__, "info": info.to_dict()})


def load_checkpoint(path: Path, device: torch.device) -> Checkpoint:
    """Read a network. Raises AbsentError for no file, DataError for one that is damaged or is not a checkpoint of rjem;
    pickles are never loaded."""
    tensors, description = read_tensors(path)
    info = info_of(path, description)
    try:
        model = with_weights(info, tensors)
    except (RuntimeError, ValueError, TypeError) as error:
        raise unfit(path, error) from None
    if not all_finite(tensors.values()):
        raise DataError(f"{path} holds weights that are not finite; use another checkpoint")
    return Checkpoint(path, model.to(device).eval(), info)


def with_weights(info: CheckpointInfo, tensors: dict[str, Tensor]) -> WideResNet:
    """Its network with these weights. It is built without memory first, so that no description can ask for more than
    its file holds. Raises RuntimeError or ValueError for tensors of another network."""
    if info.config.depth > 6 * len(tensors) + 4:
        raise ValueError(f"depth {info.config.depth} with {len(tensors)} tensors")
    with torch.device("meta"):
        model = build_model(info.config, info.image_shape[0], len(info.class_names))
    expected = model.state_dict()
    for name, tensor in tensors.items():
        if name in expected and tensor.dtype != expected[name].dtype:
            raise ValueError(f"{name} is {tensor.dtype}")
    model.load_state_dict(tensors, assign=True)
    return channels_last(model)


def read_info(path: Path) -> CheckpointInfo:
    """The description inside a checkpoint, without its weights. Raises as `load_checkpoint` does."""
    return info_of(path, read_description(path))


def info_of(path: Path, description: Description) -> CheckpointInfo:
    try:
        if description["format"] != FORMAT:
            raise ValueError(f"format {description['format']}, this rjem reads {FORMAT}")
        return CheckpointInfo.from_dict(description["info"])
    except (RjemError, KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise unfit(path, error) from None


def unfit(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:200]
    return DataError(f"{path} does not fit its own description ({reason}); use another checkpoint")


def state_path(checkpoint: Path) -> Path:
    return checkpoint.with_suffix(".state.safetensors")


def all_finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
