"""Checkpoints: the averaged network as one safetensors file with its config inside, and beside it the state to resume
from.

    step-00000600.safetensors        what samples and is tested; share this one
    step-00000600.state.safetensors  live weights, momentum, averages, replay buffer
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rjem_cli import __version__
from rjem_cli.config import TrainConfig
from rjem_cli.config.yaml_files import read_mapping
from rjem_cli.engine.data.images import Splits
from rjem_cli.engine.models.tensor_file import Description, read_description, read_tensors, write_tensors
from rjem_cli.engine.models.wide_resnet import WideResNet, build_model, channels_last
from rjem_cli.errors import AbsentError, DataError, RjemError
from rjem_cli.paths import find_run_dir, trained_checkpoints_in

FORMAT = "rjem-checkpoint-6"
LARGEST_SIDE = 4096  # pixels
MOST_IMAGES = 2**63 - 1  # seen in training
CONFIG_FILE = "config.yaml"
DATA_PATHS = ("data", "test_data")  # knobs that are paths


@dataclass(frozen=True)
class CheckpointInfo:
    """What a model needs to be used: its config, its classes, its images' shape (C, H, W) and its training data's
    digest; how many training images it has seen; `val_accuracy` where it was measured when the checkpoint was due; what
    its state is known by.

    A file holds no path: where a user's `own_images` are, the config.yaml of the run's folder says."""

    config: TrainConfig
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    data_name: str
    data_digest: str
    own_images: bool
    step: int
    images_seen: int = 0
    val_accuracy: float | None = None
    state_sha256: str | None = None

    @classmethod
    def of(cls, config: TrainConfig, splits: Splits, step: int) -> CheckpointInfo:
        """Raises DataError for images of a size that no checkpoint can have."""
        shape, own = splits.train.image_shape, config.data is not None
        if max(shape) > LARGEST_SIDE:
            raise DataError(
                f"images of {splits.name} are {shape} (C, H, W); give images of {LARGEST_SIDE} pixels a side at most"
            )
        return cls(config, splits.class_names, shape, splits.name, splits.train.digest(), own, step)

    def at(self, step: int, images_seen: int, val_accuracy: float | None) -> CheckpointInfo:
        return replace(self, step=step, images_seen=images_seen, val_accuracy=val_accuracy)

    def to_dict(self) -> dict[str, Any]:
        return asdict(replace(self, config=strip_paths(self.config)))

    def trained_on(self) -> TrainConfig:
        """Where its images are. Raises AbsentError where that is not known."""
        if self.own_images and not self.config.data:
            raise AbsentError(f"no config.yaml of its run says where {self.data_name} is")
        return self.config

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CheckpointInfo:
        """Raises KeyError, ValueError, TypeError or ConfigError for what `to_dict` did not give."""
        channels, height, width = (int(size) for size in values["image_shape"])
        if channels not in (1, 3) or not 1 <= min(height, width) <= max(height, width) <= LARGEST_SIDE:
            raise ValueError(f"image_shape {[channels, height, width]}")
        "".join(str(name) for name in values["class_names"]).encode()  # a ValueError for what no file can hold
        if not re.fullmatch("[0-9a-f]{64}", str(values["data_digest"])):  # it names files
            raise ValueError("data_digest is no sha256")
        if not 0 <= (images_seen := int(values["images_seen"])) <= MOST_IMAGES:
            raise ValueError("images_seen is no count")
        return cls(
            config=strip_paths(TrainConfig.from_dict(values["config"])),
            class_names=tuple(str(name) for name in values["class_names"]),
            image_shape=(channels, height, width),
            data_name=str(values["data_name"]),
            data_digest=str(values["data_digest"]),
            own_images=bool(values["own_images"]),
            step=int(values["step"]),
            images_seen=images_seen,
            val_accuracy=None if values["val_accuracy"] is None else float(values["val_accuracy"]),
            state_sha256=None if values["state_sha256"] is None else str(values["state_sha256"]),
        )


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    model: nn.Module
    info: CheckpointInfo
    is_custom: ClassVar[bool] = False  # a network that rjem did not train

    def sha256(self) -> str:
        """Of the file, as it was when this was first asked: what a score or a sample came from."""
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def strip_paths(config: TrainConfig) -> TrainConfig:
    """As a file keeps it."""
    return TrainConfig.from_dict(config.to_dict() | dict.fromkeys(DATA_PATHS))


def with_data_paths(info: CheckpointInfo, path: Path) -> CheckpointInfo:
    """With the places of the images as the checkpoint's run, if it lies in one, says; else as they are."""
    run_dir = find_run_dir(path)
    if not info.own_images or run_dir is None or not (run_dir / CONFIG_FILE).is_file():  # a pipe would never end
        return info
    try:
        kept = read_mapping(run_dir / CONFIG_FILE)
        places = {option: place for option in DATA_PATHS if isinstance(place := kept.get(option), str)}
        return replace(info, config=TrainConfig.from_dict(info.config.to_dict() | places))
    except RjemError:
        return info


def save_checkpoint(path: Path, model: nn.Module, info: CheckpointInfo) -> None:
    """Write the network with its config. Raises RjemError, and leaves no part of a file, where that fails."""
    write_tensors(path, model.state_dict(), {"format": FORMAT, "rjem": __version__, "info": info.to_dict()})


def load_checkpoint(path: Path, device: torch.device) -> Checkpoint:
    """Read a network. Raises AbsentError for no file, DataError for one that is damaged or is not a checkpoint of rjem,
    and names the newest whole one of the same run; pickles are never loaded."""
    try:
        checkpoint = whole_checkpoint(path, device)
    except DataError as error:
        raise DataError(f"{error}{find_valid_sibling(path)}") from None
    return replace(checkpoint, info=with_data_paths(checkpoint.info, path))


def find_valid_sibling(path: Path) -> str:
    """Which checkpoint of the same run could be used instead, in words."""
    run_dir = find_run_dir(path)
    for other in reversed(trained_checkpoints_in(run_dir) if run_dir else []):
        if other.name != path.name:
            with contextlib.suppress(RjemError):
                return f"; {whole_checkpoint(other, torch.device('cpu')).path} is whole"
    return ""


def whole_checkpoint(path: Path, device: torch.device) -> Checkpoint:
    """`load_checkpoint` of this file alone."""
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
