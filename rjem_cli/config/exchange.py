"""Options of `rjem import` and `rjem export`."""

from dataclasses import dataclass

from rjem_cli.config.common import DATASETS, DeviceOptions, image_size
from rjem_cli.config.fields import Config, option
from rjem_cli.errors import ConfigError

LAYOUTS = ("jem", "jempp", "sadajem", "trades", "dat", "robustness")


@dataclass(frozen=True, kw_only=True)
class ImportConfig(DeviceOptions):
    layout: str = option(
        "auto", "The project that wrote the file; auto looks at its content", choices=("auto", *LAYOUTS)
    )
    dataset: str | None = option(
        None, "Built-in data set that the network was trained on (default: cifar10)", choices=DATASETS, replaces="data"
    )
    data: str | None = option(None, "Your images that it was trained on, with classes", replaces="dataset")
    image_size: int | None = image_size("Crop and resize images as in rjem train")
    recompute_statistics: bool = option(
        False, "Recompute BatchNorm's statistics on clean training images; those of JEM++ are of nearly one batch"
    )
    limit: int = option(1000, "Test images of the check, spread evenly; 0 means all", ge=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset and self.data:
            raise ConfigError("--dataset and --data exclude each other; give one")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Config):
    layout: str = option(
        "safetensors",
        "The project that will load the file; torch and safetensors have the names of rjem, huggingface is a folder "
        "for the Hub",
        choices=(*LAYOUTS, "torch", "safetensors", "huggingface"),
    )
    output: str | None = option(None, "File, or folder for huggingface [the run's name and the layout]")
    overwrite: bool = option(False, "Replace the output of an earlier call")
