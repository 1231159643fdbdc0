import pytest
import torch

from rjem_cli.engine.data.images import ImageSet
from rjem_cli.engine.evaluation.robustness import Accuracy, accuracy, evenly_spaced, robust_accuracy

CPU = torch.device("cpu")
PIXELS = torch.arange(0, 256, dtype=torch.uint8).view(-1, 1, 1, 1)
IMAGES = ImageSet(PIXELS, (PIXELS.flatten() >= 128).long(), ("dark", "light"))


def brightness(x: torch.Tensor) -> torch.Tensor:
    """A perfect classifier whose margin is the distance to middle grey."""
    level = x.flatten(1).sum(1, keepdim=True)
    return torch.cat([-level, level], dim=1)


def test_clean_accuracy_is_exact():
    assert accuracy(brightness, IMAGES, CPU) == Accuracy(256, 256)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_exactly_the_images_within_eps_of_the_border_fall(norm):
    eps = 20 / 127.5
    fallen = 256 - robust_accuracy(brightness, IMAGES, CPU, eps=eps, steps=10, norm=norm).correct
    assert fallen == 40  # 20 levels on each side


def test_eps_zero_gives_the_clean_and_a_huge_eps_no_accuracy():
    assert robust_accuracy(brightness, IMAGES, CPU, eps=0, steps=5, norm="linf").value == 1
    assert robust_accuracy(brightness, IMAGES, CPU, eps=4, steps=5, norm="linf").value == 0


def test_wilson_intervals():
    assert Accuracy(90, 100).interval() == pytest.approx((0.8256, 0.9448), abs=1e-4)
    low, high = Accuracy(0, 50).interval()
    assert low == pytest.approx(0) and 0.05 < high < 0.08
    assert Accuracy(50, 50).interval()[1] == pytest.approx(1)


def test_a_limit_takes_fixed_images_spread_over_the_set():
    few = evenly_spaced(IMAGES, 5)
    assert few.pixels.flatten().tolist() == [0, 64, 128, 191, 255]
    assert evenly_spaced(IMAGES, 0) is IMAGES and evenly_spaced(IMAGES, 999) is IMAGES
