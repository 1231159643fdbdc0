"""From features to scores: a function a metric, each giving its scores under Inception's names."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rjem_cli.config import EvalConfig
from rjem_cli.engine.data.collection import ImageCollection
from rjem_cli.engine.quality.diversity import class_shares, entropy, exact_copies, within_class_distance
from rjem_cli.engine.quality.extractors import Extractor
from rjem_cli.engine.quality.features import Features
from rjem_cli.engine.quality.metrics import (
    Neighbours,
    frechet_distance,
    frechet_of_few,
    inception_score,
    kernel_distance,
    look_at_neighbours,
    precision_recall,
    statistics_of,
)
from rjem_cli.engine.quality.plan import Labels, Plan, score_name
from rjem_cli.engine.quality.reference import Reference, Statistics
from rjem_cli.errors import DataError

Scores = dict[str, float]
PerClass = dict[str, dict[str, float]]  # kind: class name: value


@dataclass
class Subject:
    """What is scored: the images with their features, and their classes. `real` is None where the reference is
    statistics."""

    config: EvalConfig
    samples: ImageCollection
    reference: Reference
    labels: Labels
    extractor: Extractor
    device: torch.device
    generated: Features
    real: Features | None

    @property
    def real_features(self) -> Tensor:
        assert self.real is not None
        return self.real.features

    @cached_property
    def on_device(self) -> tuple[Tensor, Tensor]:
        return self.generated.features.to(self.device), self.real_features.to(self.device)

    @cached_property
    def neighbours(self) -> Neighbours:
        return look_at_neighbours(*self.on_device, self.config.coverage_neighbours)

    @cached_property
    def classes_seen(self) -> Tensor:
        """The class of each sample as the judge sees it, or with other features that of its nearest real image."""
        logits, real = self.generated.logits, self.labels.real
        assert real is not None
        if logits is not None and self.extractor.class_names == self.labels.class_names:
            return logits.argmax(dim=1)
        return real[self.neighbours.nearest.cpu()]

    def real_statistics(self) -> Statistics:
        return self.reference.statistics or statistics_of(self.real_features)


def score_is(subject: Subject) -> tuple[Scores, PerClass]:
    assert subject.generated.logits is not None
    config = subject.config
    mean, deviation = inception_score(subject.generated.logits, config.is_splits, config.seed)
    return {"isc_mean": mean, "isc_std": deviation}, {}


def score_fid(subject: Subject) -> tuple[Scores, PerClass]:
    return {"fid": frechet_distance(statistics_of(subject.generated.features), subject.real_statistics())}, {}


def score_kid(subject: Subject) -> tuple[Scores, PerClass]:
    config, generated, real = subject.config, subject.generated.features, subject.real_features
    size = kid_subset_size(config, len(generated), len(real))
    mean, deviation = kernel_distance(generated, real, config.kid_subsets, size, config.seed)
    return {"kid_mean": mean, "kid_std": deviation}, {}


def score_prc(subject: Subject) -> tuple[Scores, PerClass]:
    precision, recall = precision_recall(*subject.on_device, subject.config.neighbours)
    return {"precision": precision, "recall": recall}, {}


def score_dc(subject: Subject) -> tuple[Scores, PerClass]:
    return {"density": subject.neighbours.density, "coverage": subject.neighbours.coverage}, {}


def score_intra_fid(subject: Subject) -> tuple[Scores, PerClass]:
    """The Frechet distance of each class that was sampled, and their mean."""
    labels, generated, real = subject.labels, subject.generated.features, subject.real_features
    assert labels.samples is not None and labels.real is not None
    distances = {
        name: class_distance(generated[labels.samples == label], real[labels.real == label])
        for label, name in enumerate(labels.class_names)
        if (labels.samples == label).any()
    }
    return {"intra_fid": sum(distances.values()) / len(distances)}, {"fid": distances}


def class_distance(generated: Tensor, real: Tensor) -> float:
    if min(len(generated), len(real)) <= generated.shape[1]:
        return frechet_of_few(generated, real)
    return frechet_distance(statistics_of(generated), statistics_of(real))


def score_diversity(subject: Subject) -> tuple[Scores, PerClass]:
    labels, real_images = subject.labels, subject.reference.images
    scores = {
        "nearest_distance": float(subject.neighbours.distance.median()),
        "nearest_distance_real": float(subject.neighbours.spacing.median()),
    }
    if real_images is not None and subject.samples.image_shape == real_images.image_shape:
        scores["exact_copies"] = exact_copies(subject.samples.pixels, real_images.pixels)
    if labels.real is None:
        return scores, {}
    count, seen = len(labels.class_names), subject.classes_seen
    shares, real_shares = class_shares(seen, count), class_shares(labels.real, count)
    own = seen if labels.samples is None else labels.samples
    scores["class_entropy"] = entropy(shares)
    within = {
        "within_class_distance": within_class_distance(subject.generated.features, own, count),
        "within_class_distance_real": within_class_distance(subject.real_features, labels.real, count),
    }
    scores |= {name: value for name, value in within.items() if not math.isnan(value)}  # classes of one image have none
    if labels.samples is not None:
        scores["class_agreement"] = float((seen == labels.samples).double().mean())
    named = [dict(zip(labels.class_names, part.tolist())) for part in (shares, real_shares)]
    return scores, {"share": named[0], "share_real": named[1]}


SCORERS: dict[str, Callable[[Subject], tuple[Scores, PerClass]]] = {
    "is": score_is,
    "fid": score_fid,
    "kid": score_kid,
    "prc": score_prc,
    "dc": score_dc,
    "intra_fid": score_intra_fid,
    "diversity": score_diversity,
}


def kid_subset_size(config: EvalConfig, generated: int, real: int) -> int:
    return min(config.kid_subset_size, generated, real)


def score(subject: Subject, plan: Plan, report: Callable[[int, int, str], None]) -> tuple[Scores, PerClass]:
    """All scores of the plan by the names that its features give them, and values by kind and class. `report` hears
    which metric comes next. Raises DataError for a score that is not finite."""
    suffix = subject.extractor.suffix
    scores: Scores = {}
    per_class: PerClass = {}
    for number, metric in enumerate(plan.metrics):
        report(number, len(plan.metrics), metric)
        found, of_classes = SCORERS[metric](subject)
        scores |= {score_name(name, suffix): value for name, value in found.items()}
        per_class |= {score_name(kind, suffix) if kind == "fid" else kind: of for kind, of in of_classes.items()}
    report(len(plan.metrics), len(plan.metrics), "done")
    for name, value in scores.items():
        if not math.isfinite(value):
            raise DataError(f"{name} of {subject.samples.name} is not finite: too few images, or features that are not")
    return scores, per_class
