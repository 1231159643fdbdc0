"""The averaged weights are the exponential moving average that their docstring states."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rjem_cli.engine.training.optimizer import Ema


def averages(decay: float, values: list[float]) -> list[float]:
    """The average after each update of a single weight that takes these values."""
    weight = nn.Linear(1, 1, bias=False)
    average, results = Ema(weight, decay), []
    for value in values:
        with torch.no_grad():
            weight.weight.fill_(value)
        average.update_parameters(weight)
        results.append(next(average.parameters()).item())
    return results


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_average_follows_the_documented_decay(decay):
    values = [float(v) for v in torch.randn(40, generator=torch.Generator().manual_seed(0))]
    expected = [values[0]]  # the first update takes the weights as they are
    for t, value in enumerate(values[1:], start=1):
        share = min(decay, (1 + t) / (10 + t))
        expected.append(share * expected[-1] + (1 - share) * value)
    assert averages(decay, values) == pytest.approx(expected, abs=1e-5)


def test_decay_0_follows_the_weights():
    assert averages(0.0, [1.0, 5.0, -2.0]) == [1.0, 5.0, -2.0]


def test_constant_weights_average_to_themselves():
    assert averages(0.999, [3.0] * 5) == pytest.approx([3.0] * 5)
