"""What a run takes is said before: linear where the work is linear, and of the work that is really done."""

from __future__ import annotations

import pytest
import torch

from rjem_cli.config import RuntimeOptions, TrainConfig
from rjem_cli.engine.runtime import start_runtime
from rjem_cli.engine.training import forecast as training_forecast
from rjem_cli.engine.training.estimate import DataShape, extrapolated, forecast
from tests.engine.training.test_trainer import TINY


@pytest.mark.parametrize("attack", [0, 1, 2, 10, 15])
@pytest.mark.parametrize("chain", [0, 1, 3, 10, 20])
def test_a_step_that_is_linear_in_its_moves_is_foretold_from_few(attack, chain):
    calls = []

    def step_seconds(attack, chain):
        calls.append((attack, chain))
        return 5 + 7 * min(attack, chain) + 4 * abs(attack - chain)

    step, _ = extrapolated(step_seconds, attack, chain)
    assert step == pytest.approx(5 + 7 * min(attack, chain) + 4 * abs(attack - chain))
    assert len(calls) <= 3 and max(map(sum, calls)) <= 6


def test_a_published_set_is_known_before_it_is_there():
    shape = DataShape.of(TrainConfig(dataset="cifar10", val_fraction=0.1, epochs=1.0))
    assert shape == ((3, 32, 32), 10, 45_000, 5_000, 10_000)
    digits = DataShape.of(TrainConfig(dataset="digits", val_fraction=0.1, steps=1))
    assert digits.image_shape == (1, 8, 8) and digits.train + digits.val + digits.test == 1797


def test_a_forecast_grows_with_the_steps_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("RJEM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(training_forecast, "median_seconds", lambda *_: 0.5)  # whatever else the machine does meanwhile
    found = {}
    for steps in (100, 10_000):
        config = TrainConfig(**{**TINY, "steps": steps})
        found[steps] = forecast(config, DataShape.of(config), start_runtime(RuntimeOptions(device="cpu")))
    assert found[100].steps == 100 and found[100].step_seconds > 0
    assert found[10_000].seconds == pytest.approx(100 * found[100].seconds, rel=0.1)
    assert found[100].memory is None or 1e8 < found[100].memory < 1e11
    assert not (tmp_path / "home").exists()


def test_its_random_numbers_are_its_own():
    config = TrainConfig(**TINY)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    forecast(config, DataShape.of(config), start_runtime(RuntimeOptions(device="cpu")))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "changes", [{"px_weight": 0.0}, {"pgd_steps": 0}, {"px_weight": 0.0, "pgd_steps": 0}, {"lr": 1e9}]
)
def test_every_special_case_and_any_rate_is_foretold(changes):
    config = TrainConfig(**{**TINY, **changes})
    assert forecast(config, DataShape.of(config), start_runtime(RuntimeOptions(device="cpu"))).step_seconds > 0


def test_of_a_run_that_goes_on_only_the_rest_is_foretold(monkeypatch):
    for name in ("median_seconds", "time_pass"):
        monkeypatch.setattr(training_forecast, name, lambda *_: 0.5)  # whatever else the machine does meanwhile
    config = TrainConfig(**{**TINY, "steps": 1000})
    shape, runtime = DataShape.of(config), start_runtime(RuntimeOptions(device="cpu"))
    whole, rest = (forecast(config, shape, runtime, done) for done in (0, 900))
    assert (whole.steps, rest.steps) == (1000, 100) and rest.other_seconds < whole.other_seconds
