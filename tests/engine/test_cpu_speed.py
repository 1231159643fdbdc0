"""The speed of bf16 is measured once on each machine."""

from __future__ import annotations

import pytest
import torch

from rjem_cli.config.training import TrainConfig
from rjem_cli.engine import cpu_speed, precision
from rjem_cli.engine.cpu_speed import bf16_speedup, measure_speedup
from rjem_cli.engine.precision import choose_precision
from rjem_cli.paths import timings_dir


@pytest.fixture
def measured(monkeypatch):
    """A list of speedups that the next measurements find."""
    speedups: list[float] = []
    monkeypatch.setattr(cpu_speed, "measure_speedup", lambda options, side: speedups.pop(0))
    return speedups


def test_a_machine_measures_each_kind_of_network_once(measured, own_home):
    """So equal commands give equal runs."""
    measured += [1.5, 0.9]
    options = TrainConfig(width=2)
    assert [bf16_speedup(options) for _ in range(3)] == [1.5, 1.5, 1.5]
    assert bf16_speedup(TrainConfig(width=4)) == 0.9
    assert len(list(timings_dir().glob("*.json"))) == 2


@pytest.mark.parametrize("value", ["1e999", "NaN", "-3.5", "true", '"2"', "1" + 400 * "0", 100_000 * "["])
def test_a_damaged_measurement_is_repeated(measured, own_home, value):
    measured += [1.5, 0.8]
    assert bf16_speedup(TrainConfig(width=2)) == 1.5
    (path,) = timings_dir().glob("*.json")
    path.write_text(f'{{"bf16_speedup": {value}}}')
    assert bf16_speedup(TrainConfig(width=2)) == 0.8


def test_without_a_cache_training_is_in_fp32(measured, own_home, monkeypatch):
    """Each command would measure anew, and equal commands could train different networks."""
    monkeypatch.setattr(precision, "has_bf16_units", lambda: True)
    own_home.mkdir()
    (own_home / "cache").write_text("a file")
    name, reason = choose_precision(TrainConfig(width=2), torch.device("cpu"))
    assert name == "fp32" and str(own_home / "cache") in reason and not measured


def test_a_measurement_changes_no_random_numbers():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert 0 < measure_speedup(TrainConfig(width=1), side=4) < 100
    assert torch.equal(torch.rand(3), expected)
