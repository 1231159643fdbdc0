"""The estimate of --dry-run: it grows with the work, and leaves nothing behind."""

from __future__ import annotations

import warnings

import pytest
import torch

from rjem_cli.config.common import RuntimeOptions
from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.runtime import start_runtime
from rjem_cli.engine.training import estimate
from rjem_cli.engine.training.estimate import DataShape, TrainingEstimate, estimate_training
from tests.engine.training.test_run import TINY
from tests.pretend_cuda import PretendCuda

RUNTIME = start_runtime(RuntimeOptions(device="cpu"))


@pytest.fixture
def fixed_times(monkeypatch):
    """A short step takes 3 s and a gradient pass 1 s, whatever else the machine does."""
    monkeypatch.setattr(estimate, "median_seconds", lambda *_: 3.0)
    monkeypatch.setattr(estimate, "time_pass", lambda *_: 1.0)


def estimate_run(done: int = 0, **changes: object) -> TrainingEstimate:
    config = TrainConfig(**{**TINY, **changes})
    return estimate_training(config, DataShape.from_options(config), RUNTIME, done)


@pytest.mark.parametrize(("pgd_steps", "sgld_steps"), [(1, 1), (2, 3), (15, 10), (10, 20)])
def test_each_further_attack_or_chain_step_costs_one_pass(fixed_times, pgd_steps, sgld_steps):
    found = estimate_run(pgd_steps=pgd_steps, sgld_steps=sgld_steps)
    assert found.step_seconds == 3 + (pgd_steps - 1) + (sgld_steps - 1)


def test_the_shape_of_a_published_data_set_is_known_before_it_is_downloaded():
    shape = DataShape.from_options(TrainConfig(dataset="cifar10", val_fraction=0.1, epochs=1.0))
    assert shape == DataShape((3, 32, 32), classes=10, train=45_000, val=5_000, test=10_000)
    digits = DataShape.from_options(TrainConfig(dataset="digits", val_fraction=0.1, steps=1))
    assert digits.image_shape == (1, 8, 8) and digits.train + digits.val + digits.test == 1797


def test_an_estimate_grows_with_the_steps_and_leaves_nothing(fixed_times, own_home):
    short, long = estimate_run(steps=100), estimate_run(steps=10_000)
    assert short.steps == 100 and long.seconds == pytest.approx(100 * short.seconds, rel=0.1)
    assert short.memory is None or 1e8 < short.memory < 1e11
    assert not own_home.exists()


def test_an_estimate_on_several_gpus_prints_no_warnings(fixed_times):
    with PretendCuda(device_count=2), warnings.catch_warnings():
        warnings.simplefilter("error")
        config = TrainConfig(**{**TINY, "device": "cuda"})
        estimate_training(config, DataShape.from_options(config), start_runtime(config))


def test_an_estimate_uses_no_random_numbers_of_its_caller():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    estimate_run()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "changes", [{"px_weight": 0.0}, {"pgd_steps": 0}, {"px_weight": 0.0, "pgd_steps": 0}, {"lr": 1e9}]
)
def test_every_special_case_and_any_rate_has_an_estimate(changes):
    assert estimate_run(**changes).step_seconds > 0


def test_the_estimate_of_a_resumed_run_is_for_its_remaining_steps(fixed_times):
    full, rest = estimate_run(steps=1000), estimate_run(steps=1000, done=900)
    assert (full.steps, rest.steps) == (1000, 100) and rest.other_seconds < full.other_seconds
