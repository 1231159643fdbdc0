"""Which images a checkpoint is judged on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rjem_cli.config import DataOptions, TestOptions, check_radius
from rjem_cli.engine.data.images import ImageSet, spread_indices
from rjem_cli.engine.data.load import load_part
from rjem_cli.engine.evaluation.attack import AttackSet, random_targets
from rjem_cli.engine.model.checkpoint import CheckpointInfo
from rjem_cli.errors import AbsentError, ConfigError, DataError, RjemError, did_you_mean


@dataclass(frozen=True)
class TestImages:
    """Images with the checkpoint's numbers for their classes; their places in what they are from, its name and size."""

    images: ImageSet
    indices: Tensor
    source: str
    of: int


def choose_images(options: TestOptions, info: CheckpointInfo) -> TestImages:
    """Raises AbsentError where nothing can be read and DataError for images that do not fit the checkpoint."""
    try:
        if options.data:
            place: DataOptions = replace(info.config, data=options.data, test_data=options.test_data)
        elif options.dataset:
            place = replace(info.config, dataset=options.dataset, data=None, test_data=None)
        else:
            place = info.trained_on()
        name, images = load_part(place, options.split)
    except RjemError as error:
        if options.dataset or options.data:
            raise
        raise AbsentError(
            f"the checkpoint's images cannot be read ({error}); say where they are with --data, or give --dataset"
        ) from None
    images = fitted(images, info, name)
    if not len(images):
        raise DataError(f"{name} has no images; take another --split")
    indices = spread_indices(len(images), options.limit)
    return TestImages(images.subset(indices), indices, name, len(images))


def attack_set(found: TestImages, target: int | None, targeted: bool, seed: int) -> AttackSet:
    """Those images with the classes that a targeted attack wants: one, or (`targeted`) random wrong ones."""
    targets, labels = None, found.images.labels
    if target is not None:
        targets = torch.full_like(labels, target)
    elif targeted:
        targets = random_targets(labels, found.indices, len(found.images.class_names), seed)
    return AttackSet(found.images, found.indices, targets, seed)


def choose_radii(options: TestOptions, info: CheckpointInfo) -> tuple[str, tuple[float, ...]]:
    """(norm, radii in model units, ascending). Raises ConfigError for radii that cannot be meant."""
    radii = options.eps if options.eps is not None else (info.config.adv_eps,)
    if not radii:
        raise ConfigError("--eps names no radius; give one, such as 8/255")
    norm = options.norm or info.config.norm
    if options.eps is None and norm != info.config.norm:
        raise ConfigError(f"--norm {norm} needs --eps: the checkpoint was trained with {info.config.norm} radii")
    check_radius("--eps", max(radii), norm)
    return norm, tuple(sorted(set(radii)))


def fitted(images: ImageSet, info: CheckpointInfo, name: str) -> ImageSet:
    """The images with the checkpoint's numbers for their classes. Raises DataError if shapes or classes differ."""
    if images.image_shape != info.image_shape:
        raise DataError(f"images of {name} are {images.image_shape} (C, H, W), the checkpoint takes {info.image_shape}")
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
