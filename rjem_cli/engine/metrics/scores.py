"""From features to scores: a function a metric, each giving its scores under Inception's names, and values by class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rjem_cli.engine.metrics.distances import (
    Neighbours,
    find_neighbours,
    frechet_distance,
    frechet_of_few,
    inception_score,
    kernel_distance,
    precision_recall,
    statistics_of,
)
from rjem_cli.engine.metrics.diversity import class_shares, entropy, exact_copies, near_copies, within_class_distance
from rjem_cli.engine.metrics.eval_inputs import EvalInputs
from rjem_cli.engine.metrics.extractors import Extractor
from rjem_cli.engine.metrics.features import Features
from rjem_cli.engine.metrics.reference import Statistics

Scores = dict[str, float]
PerClass = dict[str, dict[str, float]]  # kind: class name: value


@dataclass
class EvalContext:
    """A case with its features. `real` is None where the reference is statistics alone."""

    case: EvalInputs
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
        return find_neighbours(*self.on_device, self.case.config.coverage_neighbours)

    @property
    def seen_by_judge(self) -> bool:
        """Whether the features are of a classifier of the reference's classes."""
        return bool(self.extractor.class_names) and self.extractor.class_names == self.case.labels.class_names

    @cached_property
    def classes_seen(self) -> Tensor:
        """The class of each sample as the judge sees it, or with other features that of its nearest real image."""
        logits, real = self.generated.logits, self.case.labels.real
        assert real is not None
        if logits is not None and self.seen_by_judge:
            return logits.argmax(dim=1)
        return real[self.neighbours.nearest.cpu()]

    def real_statistics(self) -> Statistics:
        return self.case.reference.statistics or statistics_of(self.real_features)


def score_is(subject: EvalContext) -> tuple[Scores, PerClass]:
    assert subject.generated.logits is not None
    config = subject.case.config
    mean, deviation = inception_score(subject.generated.logits, config.is_splits, config.seed)
    return {"isc_mean": mean, "isc_std": deviation}, {}


def score_fid(subject: EvalContext) -> tuple[Scores, PerClass]:
    return {"fid": frechet_distance(statistics_of(subject.generated.features), subject.real_statistics())}, {}


def score_kid(subject: EvalContext) -> tuple[Scores, PerClass]:
    config, size = subject.case.config, subject.case.kid_subset_size()
    mean, deviation = kernel_distance(
        subject.generated.features, subject.real_features, config.kid_subsets, size, config.seed
    )
    return {"kid_mean": mean, "kid_std": deviation}, {}


def score_prc(subject: EvalContext) -> tuple[Scores, PerClass]:
    precision, recall = precision_recall(*subject.on_device, subject.case.config.neighbours)
    return {"precision": precision, "recall": recall}, {}


def score_density_coverage(subject: EvalContext) -> tuple[Scores, PerClass]:
    return {"density": subject.neighbours.density, "coverage": subject.neighbours.coverage}, {}


def score_intra_fid(subject: EvalContext) -> tuple[Scores, PerClass]:
    """The Frechet distance of each class that was sampled, and their mean."""
    labels, generated, real = subject.case.labels, subject.generated.features, subject.real_features
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


def score_memorization(subject: EvalContext) -> tuple[Scores, PerClass]:
    neighbours, real_images = subject.neighbours, subject.case.reference.images
    scores = {
        "nearest_distance": float(neighbours.distance.median()),
        "nearest_distance_real": float(neighbours.spacing.median()),
        "near_copies": near_copies(neighbours.distance, neighbours.spacing),
    }
    if subject.case.same_shape and real_images is not None:
        scores["exact_copies"] = exact_copies(subject.case.samples.pixels, real_images.pixels)
    return scores, {}


def score_diversity(subject: EvalContext) -> tuple[Scores, PerClass]:
    labels = subject.case.labels
    assert labels.real is not None
    count, seen = len(labels.class_names), subject.classes_seen
    shares, real_shares = class_shares(seen, count), class_shares(labels.real, count)
    own = seen if labels.samples is None else labels.samples
    scores = {"class_entropy": entropy(shares), "class_entropy_real": entropy(real_shares)}
    if labels.samples is not None:
        scores["class_agreement"] = float((seen == labels.samples).double().mean())
    within = {
        "within_class_distance": within_class_distance(subject.generated.features, own, count),
        "within_class_distance_real": within_class_distance(subject.real_features, labels.real, count),
    }
    scores |= {name: value for name, value in within.items() if not math.isnan(value)}  # classes of one image have none
    named = [dict(zip(labels.class_names, part.tolist())) for part in (shares, real_shares)]
    return scores, {"share": named[0], "share_real": named[1]}
