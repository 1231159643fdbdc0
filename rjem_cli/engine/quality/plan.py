"""Which scores a call computes: those that were asked for, or all that its images allow; what is left out is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rjem_cli.config import METRICS, EvalConfig
from rjem_cli.engine.data.collection import ImageCollection
from rjem_cli.engine.quality.choose import Choice
from rjem_cli.engine.quality.reference import Reference
from rjem_cli.errors import ConfigError, DataError, did_you_mean

# metric: the scores it gives, and their names with features other than Inception's
SCORES: dict[str, dict[str, str]] = {
    "is": {"isc_mean": "is{}", "isc_std": "is{}_std"},
    "fid": {"fid": "fd{}"},
    "kid": {"kid_mean": "kd{}_mean", "kid_std": "kd{}_std"},
    "prc": {"precision": "precision{}", "recall": "recall{}"},
    "dc": {"density": "density{}", "coverage": "coverage{}"},
    "intra_fid": {"intra_fid": "intra_fd{}"},
    "diversity": {
        "class_entropy": "class_entropy{}",
        "class_agreement": "class_agreement{}",
        "within_class_distance": "within_class_distance{}",
        "within_class_distance_real": "within_class_distance{}_real",
        "nearest_distance": "nearest_distance{}",
        "nearest_distance_real": "nearest_distance{}_real",
        "exact_copies": "exact_copies",
    },
}
LABELLED_SCORES = {"class_entropy", "within_class_distance", "within_class_distance_real"}


ALL_SCORES = {name: other for names in SCORES.values() for name, other in names.items()}
# what is better; of the others it depends on the reference
BETTER = {
    **dict.fromkeys(
        ("isc_mean", "precision", "recall", "density", "coverage", "class_entropy", "class_agreement"), "higher"
    ),
    **dict.fromkeys(("fid", "kid_mean", "intra_fid", "exact_copies"), "lower"),
}


def score_name(name: str, suffix: str) -> str:
    """`fid` by a judge is `fd_judge`."""
    return ALL_SCORES[name].format(suffix) if suffix else name


def renamed(name: str, suffix: str) -> str | None:
    """None for what is no score."""
    return score_name(name, suffix) if name in ALL_SCORES else None


@dataclass(frozen=True)
class Labels:
    """Class numbers (N,) of the samples and of the real images, among `class_names`; None where they are not known."""

    class_names: tuple[str, ...]
    samples: Tensor | None
    real: Tensor | None


@dataclass(frozen=True)
class Sizes:
    """Numbers of images, and whether they have one shape. `real` is None for statistics: their makers alone know it."""

    samples: int
    real: int | None
    same_shape: bool


@dataclass(frozen=True)
class Plan:
    """`metrics` in the order of METRICS; `scores`, the names of what they give; `notes`, what is left out, and why."""

    metrics: tuple[str, ...]
    scores: tuple[str, ...]
    notes: tuple[str, ...]


def parse_metrics(text: str) -> tuple[str, ...] | None:
    """None means all. Raises ConfigError for an unknown one."""
    if text.strip() == "all":
        return None
    asked = [part.strip() for part in text.split(",")]
    for name in asked:
        if name not in METRICS:
            raise ConfigError(f"--metrics {name!r} is unknown; {did_you_mean(name, METRICS)}")
    return tuple(name for name in METRICS if name in asked)


def make_plan(config: EvalConfig, choice: Choice, sizes: Sizes, labels: Labels) -> Plan:
    """Raises DataError where a score that was asked for cannot be had, or the Frechet distance would be of too few
    images."""
    asked = parse_metrics(config.metrics)
    chosen, notes = [], []
    for metric in METRICS if asked is None else asked:
        obstacle = OBSTACLES[metric](config, choice, sizes, labels)
        if obstacle is None:
            chosen.append(metric)
        elif asked is not None or metric == "fid":
            raise DataError(obstacle)
        else:
            notes.append(f"{metric} is left out: {obstacle}")
    names = [name for metric in chosen for name in SCORES[metric] if available(name, labels, sizes)]
    return Plan(tuple(chosen), tuple(score_name(name, choice.suffix) for name in names), tuple(notes))


def available(name: str, labels: Labels, sizes: Sizes) -> bool:
    if name == "class_agreement":
        return labels.samples is not None and labels.real is not None
    if name == "exact_copies":
        return sizes.same_shape
    return labels.real is not None if name in LABELLED_SCORES else True


Obstacle = Callable[[EvalConfig, Choice, Sizes, Labels], str | None]


def few_for_is(config: EvalConfig, choice: Choice, sizes: Sizes, labels: Labels) -> str | None:
    if choice.suffix == "_dinov2":
        return "DINOv2 has no logits"
    if sizes.samples < 2 * config.is_splits:
        return f"{sizes.samples} samples are too few for {config.is_splits} splits; lower --is-splits or give more"
    return None


def few_for_fid(config: EvalConfig, choice: Choice, sizes: Sizes, labels: Labels) -> str | None:
    least = 2 if config.allow_few else choice.dimensions + 1
    for count, name in ((sizes.samples, "samples"), (sizes.real, "reference images")):
        if count is not None and count < least:
            remedy = "give more" if config.allow_few else "give more, name other --metrics, or add --allow-few"
            return f"{count} {name} are too few for a Frechet distance of {choice.dimensions} features; {remedy}"
    return None


def few_for_neighbours(count: int, sizes: Sizes) -> str | None:
    if sizes.real is None:
        return "the reference is statistics, not images"
    if min(sizes.samples, sizes.real) <= count:
        return f"{min(sizes.samples, sizes.real)} images are too few; more than {count} are needed"
    return None


def few_for_intra(config: EvalConfig, choice: Choice, sizes: Sizes, labels: Labels) -> str | None:
    if labels.samples is None or labels.real is None:
        return "samples or reference have no classes in common"
    least = 2 if config.allow_few else choice.dimensions + 1
    present = torch.bincount(labels.samples, minlength=len(labels.class_names))
    real = torch.bincount(labels.real, minlength=len(labels.class_names))
    for name, count, real_count in zip(labels.class_names, present.tolist(), real.tolist()):
        if count and min(count, real_count) < least:
            return f"class {name} has {min(count, real_count)} images, and {least} are needed"
    return None


OBSTACLES: dict[str, Obstacle] = {
    "is": few_for_is,
    "fid": few_for_fid,
    "kid": lambda config, choice, sizes, labels: few_for_neighbours(1, sizes),
    "prc": lambda config, choice, sizes, labels: few_for_neighbours(config.neighbours, sizes),
    "dc": lambda config, choice, sizes, labels: few_for_neighbours(config.coverage_neighbours, sizes),
    "intra_fid": few_for_intra,
    "diversity": lambda config, choice, sizes, labels: few_for_neighbours(config.coverage_neighbours, sizes),
}


def labels_of(samples: ImageCollection, reference: Reference) -> Labels:
    """Classes in the numbers of the reference."""
    if reference.images is None or reference.images.labels is None:
        return Labels((), None, None)
    class_names = reference.images.class_names
    return Labels(class_names, samples.class_numbers(class_names), reference.images.class_numbers(class_names))
