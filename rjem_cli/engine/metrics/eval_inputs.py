"""What a metric is computed from: samples, reference and choice of features, and later the features themselves."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rjem_cli.config.scoring import EvalConfig
from rjem_cli.engine.data.collection import ImageCollection
from rjem_cli.engine.metrics.distances import Neighbours, find_neighbours, fit_statistics
from rjem_cli.engine.metrics.extractors import Extractor, Features
from rjem_cli.engine.metrics.feature_choice import FeatureChoice
from rjem_cli.engine.metrics.reference import Reference, Statistics
from rjem_cli.engine.runtime import Runtime


@dataclass(frozen=True)
class EvalInputs:
    """What is known before any feature is computed. `samples` are some of `total`."""

    config: EvalConfig
    samples: ImageCollection
    total: int
    reference: Reference
    choice: FeatureChoice
    runtime: Runtime

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the reference; empty if it has no labels."""
        real = self.reference.images
        return () if real is None or real.labels is None else real.class_names

    @cached_property
    def sample_labels(self) -> Tensor | None:
        """Class numbers (N,) among `class_names`; None if unknown."""
        return self.samples.class_indices(self.class_names) if self.class_names else None

    @cached_property
    def real_labels(self) -> Tensor | None:
        """Class numbers (M,) of the reference's images; None if it has no labels."""
        real = self.reference.images
        return real.class_indices(self.class_names) if real is not None and self.class_names else None

    @property
    def same_shape(self) -> bool:
        return self.reference.images is not None and self.reference.images.image_shape == self.samples.image_shape

    @property
    def real_count(self) -> int | None:
        """None if the reference is statistics only."""
        return None if self.reference.images is None else len(self.reference.images)

    @property
    def image_count(self) -> int:
        """Samples and reference images."""
        return len(self.samples) + (self.real_count or 0)

    @property
    def covariance_counts(self) -> tuple[int, int | None]:
        """How many images the two covariances are fitted to; None for statistics from a file, which do not say it."""
        return len(self.samples), None if self.reference.statistics is not None else self.real_count

    @cached_property
    def class_counts(self) -> dict[str, tuple[int, int]]:
        """(samples, reference images) of each class; empty without labels."""
        if self.sample_labels is None or self.real_labels is None:
            return {}
        count = len(self.class_names)
        counts = (torch.bincount(labels, minlength=count).tolist() for labels in (self.sample_labels, self.real_labels))
        return dict(zip(self.class_names, zip(*counts)))

    @property
    def smaller_class_counts(self) -> dict[str, int]:
        """Of each class that was sampled, the smaller number of samples or reference images."""
        return {name: min(counts) for name, counts in self.class_counts.items() if counts[0]}

    @property
    def frechet_minimum(self) -> int:
        """With fewer images a covariance is rank-deficient, which --allow-few allows."""
        return 2 if self.config.allow_few else self.choice.dimensions + 1

    @property
    def kid_subset_size(self) -> int:
        """As configured; half of the images if they are fewer, since full sets have no subsets that differ."""
        fewest = min(len(self.samples), self.real_count or 0)
        return self.config.kid_subset_size if fewest >= self.config.kid_subset_size else max(2, fewest // 2)

    def describe_rank(self, *counts: int | None) -> str:
        """The rank of covariances of so many images each."""
        if any(count is not None and count <= self.choice.dimensions for count in counts):
            return "deficient"
        return "unknown" if None in counts else "full"


@dataclass(frozen=True)
class EvalContext:
    """The inputs with their features. `real` is None if the reference is statistics only."""

    inputs: EvalInputs
    extractor: Extractor
    generated: Features
    real: Features | None

    @property
    def real_features(self) -> Tensor:
        assert self.real is not None
        return self.real.features

    @cached_property
    def features_on_device(self) -> tuple[Tensor, Tensor]:
        device = self.inputs.runtime.device
        return self.generated.features.to(device), self.real_features.to(device)

    @cached_property
    def neighbours(self) -> Neighbours:
        return find_neighbours(*self.features_on_device, self.inputs.config.coverage_neighbours)

    @property
    def real_statistics(self) -> Statistics:
        return self.inputs.reference.statistics or fit_statistics(self.real_features)

    @property
    def judge_knows_classes(self) -> bool:
        """Whether the features come from a classifier of the reference's classes."""
        return bool(self.extractor.class_names) and self.extractor.class_names == self.inputs.class_names

    @cached_property
    def predicted_classes(self) -> Tensor:
        """The class of each sample (N,) according to the judge, or with other features that of the nearest real
        image."""
        assert self.inputs.real_labels is not None
        if self.generated.logits is not None and self.judge_knows_classes:
            return self.generated.logits.argmax(dim=1)
        return self.inputs.real_labels[self.neighbours.nearest.cpu()]
