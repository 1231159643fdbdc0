"""Scores of generated images against real ones. IS, FID, KID, precision and recall are torch-fidelity's functions,
called directly; density and coverage are Naeem et al. 2020's.

Shapes: features (N, D) float32, logits (N, K). Generated images come first, real ones second.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rjem_cli.engine.metrics.reference import Statistics

TILE = 5000  # rows of a distance matrix at a time
LARGEST_FULL = 10_000  # images up to which torch-fidelity holds whole distance matrices


def inception_score(logits: Tensor, splits: int, seed: int) -> tuple[float, float]:
    """(mean, standard deviation over splits) of exp(E KL(p(y|x) || p(y))), in [1, K] (Salimans et al. 2016)."""
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    found = isc_features_to_metric(logits, splits=splits, shuffle=True, rng_seed=seed)
    return found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD]


def statistics_of(features: Tensor) -> Statistics:
    """Mean and covariance, in float64 whatever they are computed in: `frechet_distance` wants equal types."""
    from torch_fidelity.metric_fid import fid_features_to_statistics

    found = fid_features_to_statistics(features)
    return Statistics(found["mu"].astype(np.float64), np.atleast_2d(found["sigma"].astype(np.float64)))


def frechet_distance(generated: Statistics, real: Statistics) -> float:
    """|mu1 - mu2|^2 + tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^(1/2)) (Heusel et al. 2017)."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    first, second = ({"mu": part.mu, "sigma": part.sigma} for part in (generated, real))
    return not_below_zero(fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID])


def frechet_of_few(generated: Tensor, real: Tensor) -> float:
    """The same for (n, D) and (m, D) features with n or m below D, and much faster then: with A and B the centred
    features over sqrt(n - 1) and sqrt(m - 1), tr (sigma1 sigma2)^(1/2) is the sum of the singular values of A B^T."""
    first, second = (part.double() for part in (generated, real))
    a, b = ((part - part.mean(dim=0)) / (len(part) - 1) ** 0.5 for part in (first, second))
    cross = torch.linalg.svdvals(a @ b.T).sum()
    means = (first.mean(dim=0) - second.mean(dim=0)).square().sum()
    return not_below_zero(float(means + a.square().sum() + b.square().sum() - 2 * cross))


def not_below_zero(distance: float) -> float:
    """Without what rounding left below 0; NaN stays NaN."""
    return float(np.maximum(distance, 0.0))


def kernel_distance(generated: Tensor, real: Tensor, subsets: int, subset_size: int, seed: int) -> tuple[float, float]:
    """(mean, standard deviation over subsets) of the unbiased MMD^2 with a cubic kernel (Binkowski et al. 2018); it can
    be below 0."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    found = kid_features_to_metric(
        generated, real, kid_subsets=subsets, kid_subset_size=subset_size, rng_seed=seed, verbose=False
    )
    return found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD]


def precision_recall(generated: Tensor, real: Tensor, neighbours: int) -> tuple[float, float]:
    """Shares of generated images near a real one, and of real ones near a generated one (Kynkaanniemi et al. 2019)."""
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    large = max(len(generated), len(real)) > LARGEST_FULL
    found = prc_features_to_metric(
        generated,
        real,
        prc_neighborhood=neighbours,
        prc_batch_size=TILE if large else LARGEST_FULL,
        save_cpu_ram=large,
        verbose=False,
    )
    return found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]


class Neighbours(NamedTuple):
    """Of each generated image its nearest real one, (N,), and the distance to it; `spacing`, of each real image the
    distance to its nearest fellow; density and coverage."""

    nearest: Tensor
    distance: Tensor
    spacing: Tensor
    density: float
    coverage: float


def find_neighbours(generated: Tensor, real: Tensor, neighbours: int) -> Neighbours:
    """Density: the mean number of real images' k-nearest-neighbour balls that contain a generated image, over k.
    Coverage: the share of these balls that contain a generated image (Naeem et al. 2020, Eq. 4 and 5). A point on the
    surface is outside, as in the authors' code."""
    radii, spacing = [], []
    for part in real.split(TILE):
        closest = torch.cdist(part, real).topk(neighbours + 1, largest=False).values  # the image itself among them
        radii.append(closest[:, -1])
        spacing.append(closest[:, 1])
    radius_M = torch.cat(radii)
    nearest, distance, inside = [], [], 0.0
    covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for part in generated.split(TILE):
        distance_BM = torch.cdist(part, real)
        closest_B = distance_BM.min(dim=1)
        nearest.append(closest_B.indices)
        distance.append(closest_B.values)
        within = distance_BM < radius_M
        inside += within.sum().item()
        covered |= within.any(dim=0)
    return Neighbours(
        torch.cat(nearest),
        torch.cat(distance),
        torch.cat(spacing),
        inside / (neighbours * len(generated)),
        covered.float().mean().item(),
    )
