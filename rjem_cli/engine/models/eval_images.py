"""The images that a checkpoint is tested on and attacked with, and the radii of the attacks."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rjem_cli.config.common import check_radius
from rjem_cli.config.scoring import EvalDataOptions
from rjem_cli.config.training import DataOptions
from rjem_cli.engine.data.collection import suggest_size
from rjem_cli.engine.data.images import ImageSet, spread_indices
from rjem_cli.engine.data.load import load_part
from rjem_cli.engine.models.checkpoint import CheckpointInfo
from rjem_cli.errors import AbsentError, ConfigError, DataError, RjemError, did_you_mean


@dataclass(frozen=True)
class EvalImages:
    """Images with the checkpoint's class numbers. `indices` (N,) are their positions in `source`, which has `total`
    images. `read_summary`: what was read of a user's images."""

    images: ImageSet
    indices: Tensor
    source: str
    total: int
    read_summary: str


@dataclass(frozen=True)
class AttackDataset:
    """The N images to attack, on the host. `indices` (N,) are their positions in the split; `targets` (N,) are the
    wanted classes of a targeted attack, or None. Random draws for an image depend on `seed` and its index only."""

    images: ImageSet
    indices: Tensor
    targets: Tensor | None
    seed: int

    def __len__(self) -> int:
        return len(self.images)

    @property
    def attack_labels(self) -> Tensor:
        """The labels that the attack loss uses, int64 (N,): the true or the wanted classes."""
        return self.images.labels if self.targets is None else self.targets

    @property
    def seeds(self) -> Tensor:
        """int64 (N,)."""
        return self.seed + self.indices


def load_eval_images(options: EvalDataOptions, info: CheckpointInfo) -> EvalImages:
    """The images that the options select, by default those of the checkpoint's data set. Raises AbsentError if they
    cannot be read, and DataError if they do not fit the checkpoint."""
    try:
        if options.data:
            data_options: DataOptions = replace(info.config, data=options.data, test_data=options.test_data)
        elif options.dataset:
            data_options = replace(info.config, dataset=options.dataset, data=None, test_data=None)
        else:
            data_options = info.training_options()
        size = options.image_size or info.config.image_size
        part = load_part(replace(data_options, image_size=size), options.split)
    except RjemError as error:
        if options.dataset or options.data or not info.user_images:
            raise
        raise AbsentError(f"cannot read the checkpoint's images ({error}); give --data or --dataset") from None
    images = match_classes(part.images, info, part.name)
    if not len(images):
        raise DataError(f"{part.name} has no images; choose another --split")
    indices = spread_indices(len(images), options.limit)
    return EvalImages(images.subset(indices), indices, part.name, len(images), part.read_summary)


def match_classes(images: ImageSet, info: CheckpointInfo, name: str) -> ImageSet:
    """The images with the checkpoint's class numbers. Raises DataError if shapes or classes differ."""
    if images.image_shape != info.image_shape:
        raise DataError(
            f"images of {name} are {images.image_shape} (C, H, W), the checkpoint takes {info.image_shape}"
            f"{suggest_size(info.image_shape)}"
        )
    if images.class_names == info.class_names:
        return images
    for class_name in images.class_names:
        if class_name not in info.class_names:
            raise DataError(
                f"class {class_name!r} of {name} is unknown to the checkpoint; "
                f"{did_you_mean(class_name, info.class_names)}"
            )
    numbers = torch.tensor([info.class_names.index(class_name) for class_name in images.class_names])
    return replace(images, labels=numbers[images.labels], class_names=info.class_names)


def resolve_radii(options: EvalDataOptions, info: CheckpointInfo) -> tuple[str, tuple[float, ...]]:
    """(norm, radii in model units, ascending), by default those of the training. Raises ConfigError for invalid
    radii."""
    radii = options.eps if options.eps is not None else (info.config.adv_eps,)
    if not radii:
        raise ConfigError("--eps is empty; give a radius such as 8/255")
    norm = options.norm or info.config.norm
    if options.eps is None and norm != info.config.norm:
        raise ConfigError(f"--norm {norm} needs --eps: the checkpoint was trained with {info.config.norm} radii")
    check_radius("--eps", max(radii), norm)
    return norm, tuple(sorted(set(radii)))
