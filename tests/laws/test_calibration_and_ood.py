"""Calibration and out-of-distribution scores agree with their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from rjem_cli.engine.accuracy import calibration_error, reliability
from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.callbacks import noop
from rjem_cli.engine.data.images import ImageSet
from rjem_cli.engine.metrics.ood import auroc, compute_outputs, fit_shape, other_class, synthetic_set

CPU = torch.device("cpu")


def images(count: int = 60, channels: int = 3) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, channels, 5, 4), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.arange(count) % 3, ("a", "b", "c"))


def test_the_calibration_error_is_the_sum_of_guo_et_al():
    generator = torch.Generator().manual_seed(0)
    confidence, correct = torch.rand(500, generator=generator), torch.rand(500, generator=generator) < 0.7
    expected = 0.0
    for low in range(10):
        inside = (confidence > low / 10) & (confidence <= (low + 1) / 10)
        if inside.any():
            gap = abs(confidence[inside].double().mean() - correct[inside].double().mean())
            expected += inside.sum().item() / 500 * gap.item()
    bins = reliability(confidence, correct, 10)
    assert calibration_error(bins) == pytest.approx(expected)
    assert sum(each.images for each in bins) == 500


def test_confidence_that_equals_accuracy_has_no_calibration_error():
    confidence = torch.full((1000,), 0.8)
    correct = torch.arange(1000) < 800
    assert calibration_error(reliability(confidence, correct, 15)) == pytest.approx(0, abs=1e-7)
    assert calibration_error(reliability(confidence, ~correct, 15)) == pytest.approx(0.6)
    assert calibration_error(reliability(torch.ones(10), torch.zeros(10, dtype=torch.bool), 1)) == 1
    empty = reliability(torch.tensor([0.0, 1.0]), torch.tensor([True, True]), 4)  # 0 lies in the first bin
    assert [each.images for each in empty] == [1, 0, 0, 1] and math.isnan(empty[1].accuracy)


def test_auroc_is_the_share_of_correctly_ranked_pairs_and_ties_count_half():
    inside, outside = torch.tensor([1.0, 2.0, 2.0, 5.0]), torch.tensor([0.0, 2.0, 3.0])
    pairs = [(a > b) + 0.5 * (a == b) for a in inside for b in outside]
    assert auroc(inside, outside) == pytest.approx(float(sum(pairs)) / 12)
    assert auroc(inside, inside) == 0.5 and auroc(inside, -inside) == 1
    assert auroc(outside, inside) == pytest.approx(1 - auroc(inside, outside))


def test_outputs_of_a_linear_model_have_their_closed_form():
    """f(x) = Wx: E(x) = -logsumexp Wx, and dE/dx = -W^T p."""
    generator = torch.Generator().manual_seed(1)
    weight, x = torch.randn(3, 8, generator=generator), torch.rand(7, 2, 2, 2, generator=generator)
    outputs = compute_outputs(lambda x: x.flatten(1) @ weight.T, x, CPU, BatchSizer(3), noop)
    logits = x.flatten(1) @ weight.T
    assert torch.allclose(outputs.logits, logits, atol=1e-6)
    assert torch.allclose(outputs.energy, -logits.logsumexp(1), atol=1e-6)
    assert torch.allclose(outputs.gradient_norm, (logits.softmax(1) @ weight).norm(dim=1), atol=1e-5)
    scores = outputs.scores()
    assert torch.equal(scores["log_p"], -outputs.energy) and torch.equal(scores["gradient"], -outputs.gradient_norm)
    assert torch.allclose(scores["max_p"].sigmoid(), logits.softmax(1).amax(1), atol=1e-6)


def test_a_confident_model_still_ranks_its_images():
    """In float32 both probabilities are 1."""
    x = torch.tensor([[40.0, 0.0], [60.0, 0.0]])[:, :, None, None]
    outputs = compute_outputs(lambda x: x.flatten(1), x, CPU, BatchSizer(2), noop)
    assert outputs.logits.softmax(1).amax(1).tolist() == [1, 1] and outputs.scores()["max_p"].diff() > 0


def test_synthetic_sets():
    data = images()
    sets = {name: synthetic_set(name, data, seed=3) for name in ("noise", "constant", "shuffled", "interpolations")}
    for name, pixels in sets.items():
        assert pixels.shape == data.pixels.shape and pixels.dtype == torch.uint8
        assert torch.equal(pixels, synthetic_set(name, data, seed=3)) and not torch.equal(
            pixels, synthetic_set(name, data, seed=4)
        )
    assert (sets["constant"] == sets["constant"][:, :, :1, :1]).all()
    # each pixel keeps its three channels and moves
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


def test_other_images_are_resized_to_the_models_shape():
    grey = images(channels=1).pixels
    assert fit_shape(grey, (3, 5, 4)).shape == (60, 3, 5, 4) and torch.equal(fit_shape(grey, (1, 5, 4)), grey)
    constant = torch.full((2, 3, 64, 48), 130, dtype=torch.uint8)
    assert (fit_shape(constant, (1, 12, 12)) == 130).all() and fit_shape(constant, (3, 7, 9)).shape == (2, 3, 7, 9)
