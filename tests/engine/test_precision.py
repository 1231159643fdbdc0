"""What `--precision auto` takes, and that a machine decides it once."""

from __future__ import annotations

import pytest
import torch

from rjem_cli.config.sampling import GenerateConfig
from rjem_cli.config.scoring import AttackConfig
from rjem_cli.config.training import TrainConfig
from rjem_cli.engine import precision
from rjem_cli.engine.precision import MIN_SPEEDUP, bf16_speedup, choose_precision, measure_speedup
from rjem_cli.paths import timings_dir

CPU = torch.device("cpu")


@pytest.fixture
def measured(monkeypatch):
    """A CPU with units for bf16, and a list of speedups that its next measurements find."""
    speedups: list[float] = []
    monkeypatch.setattr(precision, "has_bf16_units", lambda: True)
    monkeypatch.setattr(precision, "measure_speedup", lambda options, side: speedups.pop(0))
    return speedups


@pytest.mark.parametrize(("speedup", "expected"), [(2.0, "bf16"), (MIN_SPEEDUP - 0.01, "fp32"), (0.3, "fp32")])
def test_wide_networks_train_in_the_faster_arithmetic(measured, speedup, expected):
    measured += [speedup]
    name, reason = choose_precision(TrainConfig(width=2), CPU)
    assert name == expected and f"{speedup:.2g} times as fast" in reason


def test_nothing_is_measured_for_narrow_networks_samples_and_attacks(measured):
    configs = [TrainConfig(width=1), GenerateConfig(), AttackConfig(), TrainConfig(width=2, precision="fp32")]
    assert [choose_precision(config, CPU)[0] for config in configs] == ["fp32"] * 4
    assert choose_precision(TrainConfig(width=2, precision="bf16"), CPU) == ("bf16", "requested")


def test_a_cpu_without_units_for_bf16_is_not_measured(measured, monkeypatch):
    monkeypatch.setattr(precision, "has_bf16_units", lambda: False)
    assert choose_precision(TrainConfig(width=10), CPU)[0] == "fp32"


def test_a_machine_measures_each_kind_of_network_once(measured, own_home):
    """So a resumed run gets the arithmetic that it started with."""
    measured += [1.5, 0.9, 0.8]
    options = TrainConfig(width=2)
    assert [bf16_speedup(options) for _ in range(3)] == [1.5, 1.5, 1.5]
    assert bf16_speedup(TrainConfig(width=4)) == 0.9
    (next(timings_dir().glob("*.json"))).write_text("{")
    remeasured = {bf16_speedup(options), bf16_speedup(TrainConfig(width=4))}
    assert 0.8 in remeasured and not measured


def test_a_cache_that_cannot_be_written_is_no_error(measured, own_home):
    own_home.mkdir()
    (own_home / "cache").write_text("a file")
    measured += [1.5, 1.6]
    assert [bf16_speedup(TrainConfig(width=2)) for _ in range(2)] == [1.5, 1.6]


def test_a_measurement_changes_no_random_numbers():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert 0 < measure_speedup(TrainConfig(width=1), side=4) < 100
    assert torch.equal(torch.rand(3), expected)
