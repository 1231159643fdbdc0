"""What all commands share: bounds, names, and where a network runs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rjem_cli.config.fields import Config, option
from rjem_cli.errors import ConfigError, RadiusError

LARGEST_BATCH = 10**6
LARGEST_RADIUS = 10**6  # of an L2 ball, model units
LARGEST_LINF = 2.0  # the width of the box [-1, 1]
DEFAULT_PRESETS = {  # of rjem train for each built-in data set
    "shifted-digits": "quickstart",
    "digits": "quickstart",
    "cifar10": "cifar10-small",
    "cifar100": "cifar10-small",
    "svhn": "svhn-small",
}
DATASETS = tuple(DEFAULT_PRESETS)
OWN_IMAGES_PRESET = "cifar10-small"  # of rjem train --data
EMBEDDED_PRESET = "quickstart"  # of rjem train where no data is named
STREAM = "-"  # stdin or stdout, in place of a file
SAMPLE_MODES = ("energy", "attack", "combined")
METRICS = ("fid", "is", "kid", "prc", "dc", "intra_fid", "diversity", "copies")
STARTS = ("prior", "noise", "data", "buffer")  # of chains, beside paths
FEATURES = ("auto", "inception", "dinov2", "judge")  # by whom scores see images, beside paths
SYNTHETIC_SETS = ("noise", "constant", "shuffled", "interpolations")


def check_radius(flag: str, eps: float, norm: str) -> None:
    """Raise RadiusError for a Linf radius, in model units, that covers the whole box."""
    if norm == "linf" and eps > LARGEST_LINF:
        raise RadiusError(flag, eps)


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(Config):
    device: str = option("auto", "auto, cpu, mps, cuda or cuda:N; auto takes the fastest that is there and says why")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,9})?", self.device):
            raise ConfigError(f"--device {self.device!r} is unknown; give auto, cpu, mps, cuda or cuda:N")


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(Config):
    """Which network, where it is none that rjem trained, and the images it was made for."""

    model: str | None = option(
        None,
        "MODULE:FACTORY of a network of your own, in place of a checkpoint: a function without arguments that gives a "
        "torch.nn.Module from images (B, C, H, W) in [-1, 1] to logits (B, classes); needs --dataset or --data",
    )
    dataset: str | None = option(
        None, "Built-in data set (default: the checkpoint's)", choices=DATASETS, replaces="data"
    )
    data: str | None = option(None, "Your images, or where the training images are now", replaces="dataset")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset and self.data:
            raise ConfigError("--dataset and --data exclude each other; give one")
        if self.model and not (self.dataset or self.data):
            raise ConfigError("--model needs --dataset or --data, whose classes and images it was made for")


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions(DeviceOptions):
    precision: str = option(
        "auto",
        "Arithmetic of the network; chain states stay fp32; fp16 for GPUs without bf16",
        choices=("auto", "fp32", "tf32", "bf16", "fp16"),
    )
    compile: bool | None = option(
        None,
        "Compile the network's passes with torch.compile, in half a minute or more at the start; not unless asked for",
    )
    seed: int = option(
        0,
        "Seed of all draws; sample or image i draws from seed + i, so space seeds by the number of samples",
        minimum=0,
        maximum=2**62,
    )
