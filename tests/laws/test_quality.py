"""What distances, scores and neighbours obey, whatever the images are."""

from __future__ import annotations

import math

import pytest
import torch

from rjem_cli.engine.metrics.distances import (
    class_shares,
    entropy,
    exact_copies,
    find_neighbours,
    fit_statistics,
    frechet_distance,
    inception_score,
    kernel_distance,
    low_rank_frechet_distance,
    precision_recall,
    within_class_distance,
)
from rjem_cli.engine.metrics.reference import Statistics


def normal(count: int, dimensions: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed)) + shift


def test_the_frechet_distance_of_gaussians_has_its_closed_form():
    """With diagonal covariances: |mu1 - mu2|^2 + sum (s1 - s2)^2."""
    s1, s2, shift = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([3.0, 1.0, 0.5]), torch.tensor([1.0, 0.0, -2.0])
    first = Statistics(torch.zeros(3).double().numpy(), s1.square().diag().double().numpy())
    second = Statistics(shift.double().numpy(), s2.square().diag().double().numpy())
    assert frechet_distance(first, second) == pytest.approx(float(shift.square().sum() + (s1 - s2).square().sum()))
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first))
    assert 0 <= frechet_distance(first, first) < 1e-9


@pytest.mark.parametrize(("generated", "real"), [(40, 30), (10, 300), (300, 10), (100, 120)])
def test_the_distance_of_few_images_is_the_same_distance(generated, real):
    first, second = normal(generated, 20, 0), normal(real, 20, 1, shift=0.3)
    whole = frechet_distance(fit_statistics(first), fit_statistics(second))
    assert low_rank_frechet_distance(first, second) == pytest.approx(whole, rel=1e-5)
    moved = second + torch.full((20,), 2.0)
    means = (first.mean(0) - moved.mean(0)).square().sum() - (first.mean(0) - second.mean(0)).square().sum()
    change = low_rank_frechet_distance(first, moved) - low_rank_frechet_distance(first, second)
    assert change == pytest.approx(float(means), rel=1e-5)


def test_the_inception_score_lies_between_one_and_the_number_of_classes():
    one_class, each_class = torch.zeros(500, 7), 100 * torch.eye(5).repeat(100, 1)
    assert inception_score(one_class, splits=5, seed=0)[0] == pytest.approx(1)
    assert inception_score(each_class, splits=1, seed=0)[0] == pytest.approx(5)


def test_the_kernel_distance_is_unbiased_about_zero_and_grows_with_the_shift():
    same = [kernel_distance(normal(200, 8, 2 * s), normal(200, 8, 2 * s + 1), 5, 200, 0)[0] for s in range(20)]
    mean, deviation = sum(same) / 20, torch.tensor(same).std().item()
    assert abs(mean) < 3 * deviation / math.sqrt(20) and min(same) < 0
    near, far = (kernel_distance(normal(200, 8, 0), normal(200, 8, 1, shift), 5, 200, 0)[0] for shift in (0.5, 1.0))
    assert 0 < near < far


def test_precision_and_recall_tell_quality_from_diversity():
    real = torch.cat([normal(200, 4, 0), normal(200, 4, 1, shift=20)])
    precision, recall = precision_recall(normal(200, 4, 2), real, 3)  # one of two modes, well drawn
    assert precision > 0.8 and 0.3 < recall < 0.6
    precision, recall = precision_recall(normal(200, 4, 3, shift=100), real, 3)
    assert precision == recall == 0


def test_density_and_coverage_are_naeems_definitions():
    generated, real, k = normal(37, 3, 0, shift=0.2), normal(53, 3, 1), 4
    between = torch.cdist(generated.double(), real.double())
    among = torch.cdist(real.double(), real.double()).fill_diagonal_(math.inf).sort(dim=1).values
    inside = between < among[:, k - 1]
    found = find_neighbours(generated, real, k)
    assert found.density == pytest.approx(inside.sum().item() / (k * 37))
    assert found.coverage == pytest.approx(inside.any(dim=0).double().mean().item())
    assert torch.equal(found.nearest, between.argmin(dim=1))
    assert torch.allclose(found.distance.double(), between.min(dim=1).values, atol=1e-5)
    assert torch.allclose(found.spacing.double(), among[:, 0], atol=1e-5)


def test_an_image_on_the_surface_of_a_ball_is_outside():
    """Real images at 0, 1 and 3 have radii 1, 1 and 2 for k = 1; a generated one at 2 lies on the surface of the ball
    around 1, and inside the one around 3. Repeated real images have balls of radius 0, which contain nothing."""
    found = find_neighbours(torch.tensor([[2.0]]), torch.tensor([[0.0], [1.0], [3.0]]), 1)
    assert found.density == 1 and found.coverage == pytest.approx(1 / 3)
    repeated = torch.tensor([[0.0], [0.0], [0.0], [5.0]])
    found = find_neighbours(torch.tensor([[0.0]]), repeated, 2)
    assert found.density == found.coverage == 0


def test_of_one_distribution_density_is_one_and_nearly_all_is_covered():
    found = find_neighbours(normal(2000, 6, 0), normal(2000, 6, 1), 5)
    assert found.density == pytest.approx(1, abs=0.1) and found.coverage > 0.9
    collapsed = find_neighbours(normal(1, 6, 0).expand(2000, 6).contiguous(), normal(2000, 6, 1), 5)
    assert collapsed.coverage < 0.05


def test_entropy_and_shares():
    shares = class_shares(torch.tensor([0, 1, 1, 3]), 4)
    assert shares.tolist() == [0.25, 0.5, 0, 0.25]
    assert entropy(torch.full((8,), 1 / 8)) == pytest.approx(math.log(8))
    assert entropy(torch.tensor([0.0, 1.0])) == 0


def test_the_distance_within_a_class_is_the_root_mean_square_over_its_pairs():
    features, labels = normal(30, 5, 0), torch.arange(30) % 3
    expected = []
    for label in range(3):
        pairs = torch.pdist(features[labels == label].double())
        expected.append(pairs.square().mean().sqrt().item())
    assert within_class_distance(features, labels, 3) == pytest.approx(sum(expected) / 3)
    assert within_class_distance(features, labels, 7) == pytest.approx(sum(expected) / 3)  # classes without images
    assert math.isnan(within_class_distance(features[:1], labels[:1], 3))


def test_a_copy_is_one_in_every_byte():
    real = torch.randint(0, 256, (20, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    samples = real[[3, 3, 7, 9]].clone()
    samples[3, 2, 3, 3] ^= 1
    assert exact_copies(samples, real) == 3
