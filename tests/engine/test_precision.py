"""What `--precision auto` takes."""

from __future__ import annotations

import pytest
import torch

from rjem_cli.config.sampling import GenerateConfig
from rjem_cli.config.scoring import AttackConfig
from rjem_cli.config.training import TrainConfig
from rjem_cli.engine import precision
from rjem_cli.engine.precision import MIN_SPEEDUP, choose_precision

CPU = torch.device("cpu")


@pytest.fixture
def measured(monkeypatch):
    """A CPU with units for bf16, and a list of speedups that its next measurements find."""
    speedups: list[float] = []
    monkeypatch.setattr(precision, "has_bf16_units", lambda: True)
    monkeypatch.setattr(precision, "bf16_speedup", lambda options: speedups.pop(0))
    return speedups


@pytest.mark.parametrize(("speedup", "expected"), [(2.0, "bf16"), (MIN_SPEEDUP - 0.01, "fp32"), (0.3, "fp32")])
def test_wide_networks_train_in_the_faster_arithmetic(measured, speedup, expected):
    measured += [speedup]
    name, reason = choose_precision(TrainConfig(width=2), CPU)
    assert name == expected and f"{speedup:.2f} times as fast" in reason


def test_nothing_is_measured_for_narrow_networks_samples_and_attacks(measured):
    configs = [TrainConfig(width=1), GenerateConfig(), AttackConfig(), TrainConfig(width=2, precision="fp32")]
    assert [choose_precision(config, CPU)[0] for config in configs] == ["fp32"] * 4
    assert choose_precision(TrainConfig(width=2, precision="bf16"), CPU) == ("bf16", "requested")


def test_a_cpu_without_units_for_bf16_is_not_measured(measured, monkeypatch):
    monkeypatch.setattr(precision, "has_bf16_units", lambda: False)
    assert choose_precision(TrainConfig(width=10), CPU)[0] == "fp32"
