"""Names, bounds and options that commands share."""

import re
from dataclasses import dataclass
from typing import Any

from rjem_cli.config.fields import Config, option
from rjem_cli.errors import ConfigError, OptionError

LARGEST_BATCH = 10**6
LARGEST_SIDE = 1024  # of a resized image, pixels
LARGEST_RADIUS = 10**6  # of an L2 ball, model units
LARGEST_LINF = 2.0  # model units: the width of the box [-1, 1]
DEFAULT_PRESETS = {  # of rjem train for each built-in data set
    "shifted-digits": "quickstart",
    "digits": "quickstart",
    "cifar10": "cifar10-small",
    "cifar100": "cifar10-small",
    "svhn": "svhn-small",
    "mnist": "quickstart",
    "fashion-mnist": "quickstart",
    "kmnist": "quickstart",
    "emnist": "quickstart",
    "stl10": "cifar10-small",
}
DATASETS = tuple(DEFAULT_PRESETS)
OWN_IMAGES_PRESET = "cifar10-small"  # of rjem train --data
EMBEDDED_PRESET = "quickstart"  # of rjem train without --dataset and --data
STREAM = "-"  # stdin or stdout, in place of a file
SAMPLE_MODES = ("energy", "attack", "combined")
ARCHITECTURES = ("wrn", "wrn-trades", "resnet50")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
METRICS = ("fid", "is", "kid", "precision_recall", "density_coverage", "intra_fid", "diversity", "memorization")
STARTS = ("prior", "noise", "data", "buffer")  # of chains, beside paths
FEATURES = ("auto", "inception", "efficientnet-lite0", "dinov2", "judge")  # beside paths
PARTS = ("train", "test", "all")  # of a data set, as in cifar10:test
SYNTHETIC_SETS = ("noise", "constant", "shuffled", "interpolations")


def radius(default: Any, help: str) -> Any:
    """Declare the radius of a ball, in model units."""
    return option(default, help, ge=0, le=LARGEST_RADIUS, epsilon=True)


def image_size(help: str) -> Any:
    """Declare the side of resized images, in pixels."""
    return option(None, help, ge=4, le=LARGEST_SIDE)


def check_radius(flag: str, eps: float, norm: str) -> None:
    """Raise OptionError for a Linf radius, in model units, that is larger than the box."""
    if norm == "linf" and eps > LARGEST_LINF:
        raise OptionError(flag, eps, " covers the whole box [-1, 1]; give at most 255/255, such as 8/255")


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(Config):
    device: str = option("auto", "auto, cpu, mps, cuda or cuda:N; auto takes the fastest one and logs why")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,9})?", self.device):
            raise OptionError("--device", self.device, " is unknown; give auto, cpu, mps, cuda or cuda:N")


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(Config):
    """A network that rjem did not train, and the images it was made for."""

    model: str | None = option(
        None,
        "MODULE:FACTORY of your own network, instead of a checkpoint: a function without arguments that returns a "
        "torch.nn.Module from images (B, C, H, W) in [-1, 1] to logits (B, classes); needs --dataset or --data",
    )
    dataset: str | None = option(
        None, "Built-in data set (default: the checkpoint's)", choices=DATASETS, replaces="data"
    )
    data: str | None = option(None, "Your images, or the training images in a new place", replaces="dataset")
    image_size: int | None = image_size(
        "Crop and resize images as in rjem train (default: the checkpoint's --image-size, if any)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset and self.data:
            raise ConfigError("--dataset and --data exclude each other; give one")
        if self.model and not (self.dataset or self.data):
            raise ConfigError("--model needs --dataset or --data, the images it was made for")


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions(DeviceOptions):
    precision: str = option(
        "auto",
        "Arithmetic of the network (chain states stay fp32); fp16 for GPUs without bf16",
        choices=("auto", *PRECISIONS),
    )
    compile: bool | None = option(None, "Compile the network with torch.compile; takes 30 s or more (default: no)")
    cuda_graphs: bool = option(True, "Replay steps of chains and attacks as CUDA graphs (one CUDA GPU only)")
    seed: int = option(
        0,
        "Seed of all random draws; sample or image i uses seed + i, so space seeds by the number of samples",
        ge=0,
        le=2**62,
    )
