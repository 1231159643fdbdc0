"""What is compared, as far as it is known before any feature is computed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rjem_cli.config import EvalConfig
from rjem_cli.engine.data.collection import ImageCollection
from rjem_cli.engine.metrics.feature_choice import FeatureChoice
from rjem_cli.engine.metrics.reference import Reference


@dataclass(frozen=True)
class Labels:
    """Class numbers (N,) of the samples and of the real images, among `class_names`; None where they are not known."""

    class_names: tuple[str, ...] = ()
    samples: Tensor | None = None
    real: Tensor | None = None


@dataclass(frozen=True)
class EvalInputs:
    """Samples, reference, and whose features."""

    config: EvalConfig
    samples: ImageCollection
    reference: Reference
    choice: FeatureChoice

    @cached_property
    def labels(self) -> Labels:
        """Classes in the numbers of the reference."""
        real = self.reference.images
        if real is None or real.labels is None:
            return Labels()
        names = real.class_names
        return Labels(names, self.samples.class_indices(names), real.class_indices(names))

    @property
    def same_shape(self) -> bool:
        return self.reference.images is not None and self.reference.images.image_shape == self.samples.image_shape

    @property
    def real_count(self) -> int | None:
        """None for statistics alone."""
        return None if self.reference.images is None else len(self.reference.images)

    @property
    def covariance_counts(self) -> tuple[int, int | None]:
        """Images that the two covariances are of; None for one that came as statistics, whose makers alone know it."""
        return len(self.samples), None if self.reference.statistics is not None else self.real_count

    @cached_property
    def sampled_classes(self) -> dict[str, int]:
        """How many samples are of each class of the reference; empty where that is not known."""
        labels = self.labels
        if labels.samples is None:
            return {}
        counts = torch.bincount(labels.samples, minlength=len(labels.class_names))
        return dict(zip(labels.class_names, counts.tolist()))

    @cached_property
    def class_counts(self) -> dict[str, int]:
        """Of each class that was sampled, the smaller number of samples or of real images; empty without labels."""
        labels, count = self.labels, len(self.labels.class_names)
        if labels.samples is None or labels.real is None:
            return {}
        sampled, real = (torch.bincount(part, minlength=count).tolist() for part in (labels.samples, labels.real))
        return {name: min(a, b) for name, a, b in zip(labels.class_names, sampled, real) if a}

    @property
    def fewest_for_frechet(self) -> int:
        """With fewer images a covariance is rank-deficient, which --allow-few allows."""
        return 2 if self.config.allow_few else self.choice.dimensions + 1

    def kid_subset_size(self) -> int:
        """As asked for; of fewer images half of them, for a whole set has no subsets to differ."""
        assert self.real_count is not None
        fewest = min(len(self.samples), self.real_count)
        return self.config.kid_subset_size if fewest >= self.config.kid_subset_size else max(2, fewest // 2)

    def rank(self, fewest: int | None) -> str:
        if fewest is None:
            return "unknown"
        return "full" if fewest > self.choice.dimensions else "deficient"
