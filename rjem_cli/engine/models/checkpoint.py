"""Checkpoints: the averaged network with its config in one safetensors file, and beside it the state to resume from.

step-00000600.safetensors        EMA weights and prior: generates samples, is evaluated; share this file
step-00000600.state.safetensors  live weights, optimizer state, EMA, replay buffer
"""

import contextlib
import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rjem_cli import __version__
from rjem_cli.config.sources import read_mapping
from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.data.images import Splits
from rjem_cli.engine.models.prior import PRIOR_PREFIX, ClassGaussianPrior
from rjem_cli.engine.models.tensor_file import Description, read_description, read_tensors, write_tensors
from rjem_cli.engine.networks.build import Network, build_model, place
from rjem_cli.errors import AbsentError, DataError, RjemError, summarize
from rjem_cli.files import file_sha256, json_digest
from rjem_cli.paths import CARD_FILE, find_run_dir, is_pretrained, trained_checkpoints_in

FORMAT = "rjem-checkpoint-8"
MAX_SIDE = 4096  # pixels
MAX_COUNT = 2**63 - 1  # of steps and of images seen
CONFIG_FILE = "config.yaml"
RJEM_LAYOUT = "rjem"
IMPORTED_STEP = 1  # of an imported checkpoint: 0 is that of an untrained network
ORIGIN_KEYS = {"file", "sha256", "layout"}
DATA_PATHS = ("data", "test_data")  # options that are paths


@dataclass(frozen=True)
class CheckpointInfo:
    """What is needed to use a network.

    `image_shape` is (C, H, W). `data_digest`: sha256 of the training images. `user_images`: they come from `--data`.
    `images_seen`: number of training images so far. `val_accuracy`: share of the validation images, in [0, 1], if it
    was measured at this step. `origin`: where the first weights came from; the file, its sha256 and its layout, which
    is `rjem` for a checkpoint of rjem; None if they were random. A file contains no paths: config.yaml in the run's
    folder says where the images are.
    """

    config: TrainConfig
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    data_name: str
    data_digest: str
    user_images: bool
    step: int = 0
    images_seen: int = 0
    val_accuracy: float | None = None
    state_sha256: str | None = None
    origin: dict[str, Any] | None = None

    @classmethod
    def from_splits(cls, config: TrainConfig, splits: Splits) -> "CheckpointInfo":
        """Before the first step. Raises DataError if the images are too large for a checkpoint."""
        shape = splits.train.image_shape
        if max(shape) > MAX_SIDE:
            raise DataError(f"images of {splits.name} are {shape} (C, H, W); resize them to at most {MAX_SIDE} pixels")
        digest = splits.train.digest()
        return cls(config, splits.class_names, shape, splits.name, digest, user_images=config.data is not None)

    def to_dict(self) -> dict[str, Any]:
        return asdict(replace(self, config=strip_paths(self.config)))

    @property
    def is_imported(self) -> bool:
        """Whether another project trained the network."""
        return self.origin is not None and self.origin["layout"] != RJEM_LAYOUT

    @property
    def config_sha256(self) -> str:
        """Identifies the options of the training, without paths."""
        return json_digest(strip_paths(self.config).to_dict())

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CheckpointInfo":
        """Raises KeyError, TypeError, ValueError or ConfigError for values that `to_dict` does not return."""
        json.dumps(values, ensure_ascii=False).encode()  # a ValueError for text that no file can contain
        info = cls(
            **values
            | {
                "config": strip_paths(TrainConfig.from_dict(values["config"])),
                "class_names": tuple(values["class_names"]),
                "image_shape": tuple(values["image_shape"]),
            }
        )
        channels, height, width = info.image_shape
        valid = {
            "class_names": info.class_names and all(isinstance(name, str) for name in info.class_names),
            "image_shape": channels in (1, 3) and all(is_count(side, MAX_SIDE) and side for side in (height, width)),
            "data_name": isinstance(info.data_name, str),
            "data_digest": is_sha256(info.data_digest),  # names files
            "user_images": isinstance(info.user_images, bool),
            "step": is_count(info.step),
            "images_seen": is_count(info.images_seen),
            "val_accuracy": info.val_accuracy is None or 0 <= info.val_accuracy <= 1,
            "state_sha256": info.state_sha256 is None or is_sha256(info.state_sha256),
            "origin": info.origin is None or {*info.origin} >= ORIGIN_KEYS,
        }
        if invalid := [name for name, is_valid in valid.items() if not is_valid]:
            raise ValueError(f"invalid {', '.join(invalid)}")
        return info

    def training_options(self) -> TrainConfig:
        """Where the training images are. Raises AbsentError if that is unknown."""
        if self.user_images and not self.config.data:
            raise AbsentError(f"the location of {self.data_name} is unknown: its run has no config.yaml")
        return self.config


def is_count(value: Any, maximum: int = MAX_COUNT) -> bool:
    return type(value) is int and 0 <= value <= maximum


def is_sha256(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


@dataclass(frozen=True)
class Checkpoint:
    """A network in eval mode and what is known about it. `sha256` identifies the network. `is_custom`
    means that it is the user's own network: `path` is then the value of --model. `prior` is None for a custom network
    and for a judge. `notes`: what makes its scores unreliable."""

    path: Path
    model: nn.Module
    info: CheckpointInfo
    sha256: str
    prior: ClassGaussianPrior | None = None
    is_custom: bool = False
    notes: tuple[str, ...] = ()


def strip_paths(config: TrainConfig) -> TrainConfig:
    """The config as a file stores it."""
    return replace(config, data=None, test_data=None)


def with_data_paths(info: CheckpointInfo, path: Path) -> CheckpointInfo:
    """Add the paths of the training images from config.yaml, if the checkpoint at `path` is in a run that has one."""
    run_dir = find_run_dir(path)
    if not info.user_images or run_dir is None or not (run_dir / CONFIG_FILE).is_file():  # reading a pipe blocks
        return info
    try:
        options = read_mapping(run_dir / CONFIG_FILE)
        paths = {name: options[name] for name in DATA_PATHS if isinstance(options.get(name), str)}
        return replace(info, config=replace(info.config, **paths))
    except RjemError:
        return info


def checkpoint_tensors(model: nn.Module, prior: ClassGaussianPrior | None) -> dict[str, Tensor]:
    return model.state_dict() | (prior.to_tensors() if prior else {})


def write_checkpoint(path: Path, tensors: dict[str, Tensor], info: CheckpointInfo) -> None:
    """Write a network, its prior and its description. Raises RjemError and leaves no partial file if that fails."""
    write_tensors(path, tensors, {"format": FORMAT, "rjem": __version__, "info": info.to_dict()})


def load_checkpoint(path: Path, device: torch.device) -> Checkpoint:
    """Read a network. Never loads pickles. Raises AbsentError for a missing file. Raises DataError for a file that is
    damaged or not a checkpoint of rjem, and names the newest intact one of the same run; and for a pretrained model
    whose sha256 is not that of its model card."""
    run_dir = find_run_dir(path)
    if run_dir and is_pretrained(run_dir):
        return load_pretrained(path, run_dir, device)
    try:
        checkpoint = read_checkpoint(path, device)
    except DataError as error:
        sibling = find_valid_sibling(path)
        raise DataError(f"{error}; {sibling} is intact" if sibling else str(error)) from None
    return replace(checkpoint, info=with_data_paths(checkpoint.info, path))


def load_pretrained(path: Path, run_dir: Path, device: torch.device) -> Checkpoint:
    """Raises DataError if the model or its card is missing, damaged, or not as published."""
    try:
        checkpoint = read_checkpoint(path, device)
        if checkpoint.sha256 == read_mapping(run_dir / CARD_FILE).get("sha256"):
            return checkpoint
        reason = "its sha256 is not that of its model card"
    except RjemError as error:
        reason = str(error)
    raise DataError(f"the pretrained model {run_dir.name} is damaged ({reason}); install rjem again")


def find_valid_sibling(path: Path) -> Path | None:
    """The newest other intact checkpoint of the same run."""
    run_dir = find_run_dir(path)
    for sibling in reversed(trained_checkpoints_in(run_dir) if run_dir else []):
        if sibling.name != path.name:
            with contextlib.suppress(RjemError):
                return read_checkpoint(sibling, torch.device("cpu")).path
    return None


def read_checkpoint(path: Path, device: torch.device) -> Checkpoint:
    """`load_checkpoint` without the paths of the images and without a look at other checkpoints."""
    tensors, description = read_tensors(path)
    info = parse_info(path, description)
    try:
        weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(PRIOR_PREFIX)}
        model = build_from_weights(info, weights)
        prior = read_prior(info, tensors) if len(weights) < len(tensors) else None
    except (RuntimeError, ValueError, TypeError) as error:
        raise invalid_description(path, error) from None
    if find_not_finite(weights):
        raise DataError(f"{path} has weights that are not finite; use another checkpoint")
    return Checkpoint(path, place(model, device).eval(), info, file_sha256(path), prior)


def read_prior(info: CheckpointInfo, tensors: dict[str, Tensor]) -> ClassGaussianPrior:
    """Raises ValueError for a prior of other images or classes."""
    prior = ClassGaussianPrior.from_tensors(tensors, info.image_shape)
    if len(prior.factors) != len(info.class_names):
        raise ValueError(f"the prior has {len(prior.factors)} classes")
    return prior


def build_from_weights(info: CheckpointInfo, tensors: dict[str, Tensor]) -> Network:
    """Build the network on the meta device first, so that a forged description cannot allocate more memory than the
    tensors of the file. Raises RuntimeError or ValueError for tensors of another network."""
    if info.config.depth > 6 * len(tensors) + 4:
        raise ValueError(f"depth {info.config.depth} with {len(tensors)} tensors")
    with torch.device("meta"):
        model = build_model(info.config, info.image_shape[0], len(info.class_names))
    expected = model.state_dict()
    for name, tensor in tensors.items():
        if name in expected and tensor.dtype != expected[name].dtype:
            raise ValueError(f"{name} is {tensor.dtype}")
    model.load_state_dict(tensors, assign=True)
    return model


def read_info(path: Path) -> CheckpointInfo:
    """The description in a checkpoint, without reading its weights. Raises as `load_checkpoint` does."""
    return parse_info(path, read_description(path))


def parse_info(path: Path, description: Description) -> CheckpointInfo:
    """Raises DataError for a description that rjem did not write."""
    try:
        if description["format"] != FORMAT:
            raise ValueError(f"format {description['format']}, this rjem reads {FORMAT}")
        return CheckpointInfo.from_dict(description["info"])
    except (RjemError, KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise invalid_description(path, error, str(description.get("rjem"))) from None


def invalid_description(path: Path, error: Exception, version: str = __version__) -> DataError:
    """For a file that rjem `version` wrote."""
    other = "" if version == __version__ else f", or rjem {version[:20]}, which wrote it"
    return DataError(f"cannot load {path}: its content is invalid ({summarize(error)}); use another checkpoint{other}")


def state_path(checkpoint: Path) -> Path:
    return checkpoint.with_suffix(".state.safetensors")


def load_buffer(checkpoint: Checkpoint) -> Tensor | None:
    """The replay buffer (N, C, H, W) in [-1, 1] beside a checkpoint; None if it has no state, or one without a buffer.
    Raises DataError for a damaged state."""
    path = state_path(checkpoint.path)
    if not path.is_file():
        return None
    return read_tensors(path, checkpoint.info.state_sha256 or "none")[0].get("buffer")


def find_not_finite(tensors: dict[str, Tensor]) -> str | None:
    """The name of the first tensor with a NaN or an infinity. Waits once for each device, not for each tensor."""
    for device in {tensor.device for tensor in tensors.values()}:
        names = [name for name, tensor in tensors.items() if tensor.device == device]
        finite = torch.stack([tensors[name].isfinite().all() for name in names]).tolist()
        if not all(finite):
            return names[finite.index(False)]
    return None
