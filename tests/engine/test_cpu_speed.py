"""The speed of bf16 is measured once on each machine."""

from __future__ import annotations

import pytest
import torch

from rjem_cli.config.training import TrainConfig
from rjem_cli.engine import cpu_speed
from rjem_cli.engine.cpu_speed import bf16_speedup, measure_speedup
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


def test_a_damaged_measurement_is_repeated(measured, own_home):
    measured += [1.5, 0.8]
    assert bf16_speedup(TrainConfig(width=2)) == 1.5
    (path,) = timings_dir().glob("*.json")
    path.write_text("{")
    assert bf16_speedup(TrainConfig(width=2)) == 0.8


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
