"""Options of `rjem import`."""

from dataclasses import dataclass

from rjem_cli.config.common import DATASETS, DeviceOptions, image_size
from rjem_cli.config.fields import option
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
