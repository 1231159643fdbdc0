import math

import pytest
import torch

from rjem_cli.engine.accuracy import Accuracy, accuracy, evenly_spaced
from rjem_cli.engine.data.images import ImageSet, spread_indices

CPU = torch.device("cpu")
PIXELS = torch.arange(0, 256, dtype=torch.uint8).view(-1, 1, 1, 1)
IMAGES = ImageSet(PIXELS, (PIXELS.flatten() >= 128).long(), ("dark", "light"))


def test_accuracy_counts_correct_images():
    def brightness(x):
        level = x.flatten(1).sum(1, keepdim=True)
        return torch.cat([-level, level], dim=1)

    assert accuracy(brightness, IMAGES, CPU) == Accuracy(256, 256)


def test_intervals_are_those_of_wilson():
    assert Accuracy(90, 100).interval() == pytest.approx((0.8256, 0.9448), abs=1e-4)
    low, high = Accuracy(0, 50).interval()
    assert low == pytest.approx(0) and 0.05 < high < 0.08
    assert Accuracy(50, 50).interval()[1] == pytest.approx(1)
    assert math.isnan(Accuracy(0, 0).value) and Accuracy(0, 0).interval() == (0, 1)


def test_a_limit_selects_fixed_evenly_spaced_images():
    few = evenly_spaced(IMAGES, 5)
    assert few.pixels.flatten().tolist() == [0, 64, 128, 191, 255]
    for count, limit in ((10_000, 9_999), (531_131, 525_819), (50_000, 49_999), (7, 1), (7, 6)):
        indices = spread_indices(count, limit)
        assert len(indices.unique()) == limit and indices[0] == 0 and indices.max() < count
    for full in (evenly_spaced(IMAGES, 0), evenly_spaced(IMAGES, 999)):
        assert torch.equal(full.pixels, PIXELS)
