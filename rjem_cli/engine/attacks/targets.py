"""The classes that a targeted attack pushes images towards."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rjem_cli.config.scoring import AttackConfig
from rjem_cli.engine.data.images import parse_class
from rjem_cli.engine.models.eval_images import EvalImages
from rjem_cli.engine.noise import TARGET_STREAM, uniform
from rjem_cli.errors import ConfigError, DataError
from rjem_cli.paths import expand


def choose_targets(config: AttackConfig, test: EvalImages, class_names: Sequence[str]) -> Tensor | None:
    """The target of each image, int64 (N,); None for an untargeted attack. Raises ConfigError for an unknown class or
    another number of classes than images, DataError for a file that cannot be read."""
    if config.targeted:
        return random_targets(test.images.labels, test.indices, len(class_names), config.seed)
    if config.target is None:
        return None
    path = expand(config.target)
    if config.target in class_names or not path.is_file():
        return torch.full_like(test.images.labels, parse_class(config.target, class_names, "--target"))
    targets = read_targets(path, class_names)
    if len(targets) != test.total:
        raise ConfigError(
            f"--target {path} has {len(targets)} lines, but {test.source} has {test.total} images; give one class per "
            "image"
        )
    return torch.tensor(targets)[test.indices]


def read_targets(path: Path, class_names: Sequence[str]) -> list[int]:
    """The class in each line of a file. Raises ConfigError for an unknown one, DataError if the file cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        raise DataError(f"cannot read --target {path}: {error}") from None
    return [
        parse_class(line.strip(), class_names, f"--target {path}: line {number}")
        for number, line in enumerate(lines, 1)
    ]


def random_targets(labels_N: Tensor, indices_N: Tensor, num_classes: int, seed: int) -> Tensor:
    """A wrong class for each image, int64 (N,): uniform, and determined by the seed and the image's index."""
    chance = 1 - uniform(seed + indices_N, (1,), TARGET_STREAM).squeeze(1)  # [0, 1)
    return (labels_N + 1 + (chance * (num_classes - 1)).long().clamp_max(num_classes - 2)) % num_classes
