"""Which images a checkpoint is judged on."""

from __future__ import annotations

from dataclasses import replace

import torch

from rjem_cli.config import AttackConfig
from rjem_cli.engine.data.images import ImageSet
from rjem_cli.engine.data.load import load_part
from rjem_cli.engine.evaluation.accuracy import spread_indices
from rjem_cli.engine.evaluation.attack import AttackSet, random_targets
from rjem_cli.engine.model.checkpoint import CheckpointInfo
from rjem_cli.errors import AbsentError, DataError, RjemError, did_you_mean


def choose_images(config: AttackConfig, info: CheckpointInfo, target: int | None) -> tuple[AttackSet, str, int]:
    """(the images with their targets, the name of what they are from, its size). Raises AbsentError where nothing can
    be read and DataError for images that do not fit the checkpoint."""
    options = info.config
    if config.dataset:
        options = replace(options, dataset=config.dataset, data=None, test_data=None)
    if config.data:
        options = replace(options, data=config.data, test_data=config.test_data)
    try:
        name, images = load_part(options, config.split)
    except RjemError as error:
        if config.dataset or config.data:
            raise
        raise AbsentError(
            f"the checkpoint's images cannot be read ({error}); say where they are with --data, or give --dataset"
        ) from None
    images = fitted(images, info, name)
    if not len(images):
        raise DataError(f"{name} has no images; take another --split")
    indices = spread_indices(len(images), config.limit)
    chosen = images.subset(indices)
    targets = None
    if target is not None:
        targets = torch.full_like(chosen.labels, target)
    elif config.targeted:
        targets = random_targets(chosen.labels, indices, len(info.class_names), config.seed)
    return AttackSet(chosen, indices, targets, config.seed), name, len(images)


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
