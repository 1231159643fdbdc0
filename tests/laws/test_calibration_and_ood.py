"""What calibration and out-of-distribution scores obey."""

from __future__ import annotations

import math

import pytest
import torch

from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.data.images import ImageSet
from rjem_cli.engine.metrics.calibration import calibration_error, reliability
from rjem_cli.engine.metrics.ood import auroc, fitted_to, look_at, other_class, synthetic_set

CPU = torch.device("cpu")


def images(count: int = 60, channels: int = 3) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, channels, 5, 4), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.arange(count) % 3, ("a", "b", "c"))


def test_the_calibration_error_is_guos_sum():
    generator = torch.Generator().manual_seed(0)
    confidence, right = torch.rand(500, generator=generator), torch.rand(500, generator=generator) < 0.7
    expected = 0.0
    for low in range(10):
        inside = (confidence > low / 10) & (confidence <= (low + 1) / 10)
        if inside.any():
            gap = abs(confidence[inside].double().mean() - right[inside].double().mean())
            expected += inside.sum().item() / 500 * gap.item()
    bins = reliability(confidence, right, 10)
    assert calibration_error(bins) == pytest.approx(expected)
    assert sum(each.images for each in bins) == 500


def test_confidence_that_means_what_it_says_has_no_error():
    confidence = torch.full((1000,), 0.8)
    right = torch.arange(1000) < 800
    assert calibration_error(reliability(confidence, right, 15)) == pytest.approx(0, abs=1e-7)
    assert calibration_error(reliability(confidence, ~right, 15)) == pytest.approx(0.6)
    assert calibration_error(reliability(torch.ones(10), torch.zeros(10, dtype=torch.bool), 1)) == 1
    empty = reliability(torch.tensor([0.0, 1.0]), torch.tensor([True, True]), 4)  # 0 lies in the first bin
    assert [each.images for each in empty] == [1, 0, 0, 1] and math.isnan(empty[1].accuracy)


def test_auroc_is_the_chance_to_rank_rightly_with_ties_as_halves():
    inside, outside = torch.tensor([1.0, 2.0, 2.0, 5.0]), torch.tensor([0.0, 2.0, 3.0])
    pairs = [(a > b) + 0.5 * (a == b) for a in inside for b in outside]
    assert auroc(inside, outside) == pytest.approx(float(sum(pairs)) / 12)
    assert auroc(inside, inside) == 0.5 and auroc(inside, -inside) == 1
    assert auroc(outside, inside) == pytest.approx(1 - auroc(inside, outside))


def test_looks_are_those_of_a_linear_model():
    """f(x) = Wx: E(x) = -logsumexp Wx, and dE/dx = -W^T p."""
    generator = torch.Generator().manual_seed(1)
    weight, x = torch.randn(3, 8, generator=generator), torch.rand(7, 2, 2, 2, generator=generator)
    found = look_at(lambda x: x.flatten(1) @ weight.T, x, CPU, BatchSizer(3), report=lambda done: None)
    logits = x.flatten(1) @ weight.T
    assert torch.allclose(found.logits, logits, atol=1e-6)
    assert torch.allclose(found.energy, -logits.logsumexp(1), atol=1e-6)
    assert torch.allclose(found.gradient_norm, (logits.softmax(1) @ weight).norm(dim=1), atol=1e-5)
    scores = found.scores()
    assert torch.equal(scores["log_p"], -found.energy) and torch.equal(scores["gradient"], -found.gradient_norm)
    assert torch.allclose(scores["max_p"].sigmoid(), logits.softmax(1).amax(1), atol=1e-6)


def test_a_sure_model_still_has_an_order():
    """In float32 both probabilities are 1."""
    sure = look_at(
        lambda x: x.flatten(1), torch.tensor([[40.0, 0.0], [60.0, 0.0]])[:, :, None, None], CPU, BatchSizer(2), print
    )
    assert sure.logits.softmax(1).amax(1).tolist() == [1, 1] and sure.scores()["max_p"].diff() > 0


def test_made_sets():
    data = images()
    sets = {name: synthetic_set(name, data, seed=3) for name in ("noise", "constant", "shuffled", "interpolations")}
    for name, made in sets.items():
        assert made.shape == data.pixels.shape and made.dtype == torch.uint8
        assert torch.equal(made, synthetic_set(name, data, seed=3)) and not torch.equal(
            made, synthetic_set(name, data, seed=4)
        )
    assert (sets["constant"] == sets["constant"][:, :, :1, :1]).all()
    # the same colours at other places: pixels move whole
    codes = [
        part.int()[:, 0] * 65536 + part.int()[:, 1] * 256 + part.int()[:, 2] for part in (sets["shuffled"], data.pixels)
    ]
    assert torch.equal(*(code.flatten(1).sort(dim=1).values for code in codes)) and not torch.equal(*codes)
    twice = 2 * sets["interpolations"].int() - data.pixels.int()  # the partner, up to rounding
    distance = (twice[:, None] - data.pixels.int()).abs().flatten(2).amax(dim=2)
    partners = distance.argmin(dim=1)
    assert (distance.min(dim=1).values <= 1).all() and (data.labels[partners] != data.labels).all()
    one_class = ImageSet(data.pixels, torch.zeros(60, dtype=torch.long), ("a",))
    assert synthetic_set("interpolations", one_class, 0).shape == data.pixels.shape


def test_partners_are_uniform_over_the_other_classes():
    labels = torch.tensor([0] * 5 + [1] * 3 + [2] * 2).repeat(2000)
    partners = other_class(labels, torch.Generator().manual_seed(0))
    assert (labels[partners] != labels).all()
    seen = torch.bincount(labels[partners][labels == 0], minlength=3).double()
    assert seen[1] / seen.sum() == pytest.approx(0.6, abs=0.02)  # 3 of the 5 others
    assert len(partners[labels == 1].unique()) > 3000


def test_other_images_are_made_to_fit():
    grey = images(channels=1).pixels
    assert fitted_to(grey, (3, 5, 4)).shape == (60, 3, 5, 4) and torch.equal(fitted_to(grey, (1, 5, 4)), grey)
    constant = torch.full((2, 3, 64, 48), 130, dtype=torch.uint8)
    assert (fitted_to(constant, (1, 12, 12)) == 130).all() and fitted_to(constant, (3, 7, 9)).shape == (2, 3, 7, 9)
