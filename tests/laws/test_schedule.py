"""Warm-up rises to the peak; the decays reach their known values."""

import pytest

from rjem_cli.config.training import OptimizerOptions
from rjem_cli.engine.training.optimizer import learning_rate, total_steps


def test_warm_up_is_linear():
    options = OptimizerOptions(lr=0.1, warmup_steps=1000, lr_schedule="constant")
    assert learning_rate(0, 5000, options) == pytest.approx(0.0001)
    assert learning_rate(499, 5000, options) == pytest.approx(0.05)
    assert learning_rate(4999, 5000, options) == pytest.approx(0.1)


def test_the_steps_schedule_is_jempps_at_epochs_50_100_and_125_of_150():
    options = OptimizerOptions(lr=0.1, warmup_steps=0, lr_decay=0.2)
    rates = [learning_rate(epoch, 150, options) for epoch in (49, 50, 99, 100, 124, 125, 149)]
    assert rates == pytest.approx([0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008])


def test_the_cosine_ends_near_zero():
    options = OptimizerOptions(lr=0.1, warmup_steps=0, lr_schedule="cosine")
    assert learning_rate(50, 100, options) == pytest.approx(0.05)
    assert learning_rate(99, 100, options) < 0.0001


def test_steps_override_epochs_and_epochs_count_whole_batches():
    assert total_steps(OptimizerOptions(steps=7), 1000) == 7
    assert total_steps(OptimizerOptions(epochs=2.5, batch_size=64), 1000) == round(2.5 * 15)
    assert total_steps(OptimizerOptions(epochs=0.001), 10) == 1
