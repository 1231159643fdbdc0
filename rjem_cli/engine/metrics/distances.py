"""The formulas of all scores of samples. IS, FID, KID, precision and recall call torch-fidelity; density and coverage
follow Naeem et al. 2020.

Shapes: features (N, D) float32, logits (N, K). Generated images are the first argument, real ones the second.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rjem_cli.engine.data.images import hash_images
from rjem_cli.engine.metrics.reference import Statistics

TILE = 5000  # rows of a distance matrix at a time
LARGEST_FULL = 10_000  # images up to which torch-fidelity holds full distance matrices


def inception_score(logits: Tensor, splits: int, seed: int) -> tuple[float, float]:
    """(mean, standard deviation over splits) of exp(E KL(p(y|x) || p(y))), in [1, K] (Salimans et al. 2016)."""
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    result = isc_features_to_metric(logits, splits=splits, shuffle=True, rng_seed=seed)
    return result[KEY_METRIC_ISC_MEAN], result[KEY_METRIC_ISC_STD]


def fit_statistics(features: Tensor) -> Statistics:
    """Mean and covariance, in float64, as `frechet_distance` needs both arguments in one type."""
    from torch_fidelity.metric_fid import fid_features_to_statistics

    result = fid_features_to_statistics(features)
    return Statistics(result["mu"].astype(np.float64), np.atleast_2d(result["sigma"].astype(np.float64)))


def frechet_distance(generated: Statistics, real: Statistics) -> float:
    """|mu1 - mu2|^2 + tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^(1/2)) (Heusel et al. 2017)."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    first, second = ({"mu": part.mu, "sigma": part.sigma} for part in (generated, real))
    return clamp_rounding(fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID])


def low_rank_frechet_distance(generated: Tensor, real: Tensor) -> float:
    """`frechet_distance` of (n, D) and (m, D) features, faster if n or m is below D: with A and B the centred features
    over sqrt(n - 1) and sqrt(m - 1), tr (sigma1 sigma2)^(1/2) is the sum of the singular values of A B^T."""
    first, second = (part.double() for part in (generated, real))
    a, b = ((part - part.mean(dim=0)) / (len(part) - 1) ** 0.5 for part in (first, second))
    cross = torch.linalg.svdvals(a @ b.T).sum()
    means = (first.mean(dim=0) - second.mean(dim=0)).square().sum()
    return clamp_rounding(float(means + a.square().sum() + b.square().sum() - 2 * cross))


def clamp_rounding(distance: float) -> float:
    """0 for a distance that rounding made negative; NaN stays NaN."""
    return float(np.maximum(distance, 0.0))


def kernel_distance(generated: Tensor, real: Tensor, subsets: int, subset_size: int, seed: int) -> tuple[float, float]:
    """(mean, standard deviation over subsets) of the unbiased MMD^2 with a cubic kernel, which can be negative
    (Binkowski et al. 2018)."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    options = {"kid_subsets": subsets, "kid_subset_size": subset_size, "rng_seed": seed, "verbose": False}
    result = kid_features_to_metric(generated, real, **options)
    return result[KEY_METRIC_KID_MEAN], result[KEY_METRIC_KID_STD]


def precision_recall(generated: Tensor, real: Tensor, neighbours: int) -> tuple[float, float]:
    """(share of generated images near a real one, share of real images near a generated one) (Kynkaanniemi et al.
    2019)."""
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    large = max(len(generated), len(real)) > LARGEST_FULL
    options = {"prc_neighborhood": neighbours, "prc_batch_size": TILE if large else LARGEST_FULL}
    result = prc_features_to_metric(generated, real, **options, save_cpu_ram=large, verbose=False)
    return result[KEY_METRIC_PRECISION], result[KEY_METRIC_RECALL]


class Neighbours(NamedTuple):
    """For each generated image the index of its nearest real image, `nearest` (N,), and its `distance` (N,). For each
    real image the distance to its nearest real neighbour, `spacing` (M,)."""

    nearest: Tensor
    distance: Tensor
    spacing: Tensor
    density: float
    coverage: float


def find_neighbours(generated: Tensor, real: Tensor, neighbours: int) -> Neighbours:
    """Each real image has a ball that reaches to its k-th nearest real neighbour. Density: the mean number of balls
    that contain a generated image, over k. Coverage: the share of balls that contain a generated image (Naeem et al.
    2020, Eq. 4 and 5). A distance equal to the radius does not count, as in the authors' code."""
    radii, spacing = [], []
    for part in real.split(TILE):
        closest = torch.cdist(part, real).topk(neighbours + 1, largest=False).values  # the first is the image itself
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
    density, coverage = inside / (neighbours * len(generated)), covered.float().mean().item()
    return Neighbours(torch.cat(nearest), torch.cat(distance), torch.cat(spacing), density, coverage)


def class_shares(labels_N: Tensor, num_classes: int) -> Tensor:
    """The share of each class, float64 (K,), summing to 1."""
    return torch.bincount(labels_N, minlength=num_classes).double() / len(labels_N)


def entropy(shares_K: Tensor) -> float:
    """In nats: 0 for a single class, log K for equal shares."""
    return float(torch.special.entr(shares_K.double()).sum())


def within_class_distance(features_ND: Tensor, labels_N: Tensor, num_classes: int) -> float:
    """Root mean square distance of two images of one class, averaged over the classes with at least two images; NaN if
    there are none. Computed as sqrt(2 tr cov), which needs no pairs."""
    spreads = []
    for label in range(num_classes):
        members = features_ND[labels_N == label].double()
        if len(members) > 1:
            spreads.append(float((2 * members.var(dim=0).sum()).sqrt()))
    return sum(spreads) / len(spreads) if spreads else math.nan


def exact_copies(pixels: Tensor, real_pixels: Tensor) -> int:
    """How many images equal a real one in every byte."""
    real_digests = set(hash_images(real_pixels))
    return sum(digest in real_digests for digest in hash_images(pixels))


def near_copies(distance_N: Tensor, spacing_M: Tensor) -> float:
    """The share of samples that are closer to a real image than the closest 1 % of real images are to each other: about
    0.01 for new images of the same kind, more for copies. distance_N: to the nearest real image; spacing_M: from each
    real image to its nearest neighbour."""
    return float((distance_N < spacing_M.double().quantile(0.01)).double().mean())
