"""AutoAttack through its package: radii, cost estimate, cached parts, and errors before any work."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from rjem_cli.engine.attacks import autoattack
from rjem_cli.engine.attacks.robustness import AttackPlan, AttackSetup, evaluate_clean
from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.data.images import ImageSet, to_model
from rjem_cli.engine.models.eval_images import AttackDataset
from rjem_cli.errors import AbsentError, ConfigError

CPU = torch.device("cpu")
generator = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(10, 36, generator=generator)
PIXELS = torch.randint(60, 196, (12, 1, 6, 6), generator=generator).to(torch.uint8)


def linear(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1) @ WEIGHT.T


LABELS = linear(to_model(PIXELS)).argmax(dim=1)


def build_setup(model, pixels, labels, class_names):
    dataset = AttackDataset(ImageSet(pixels, labels, tuple(class_names)), torch.arange(len(pixels)), None, seed=0)
    return AttackSetup(model, model, AttackPlan(), dataset, CPU, BatchSizer(5))


def run(radii):
    """(results, images done after each part, log) of attacks on the linear model's own predictions."""
    setup = build_setup(linear, PIXELS, LABELS, "0123456789")
    done, log = [], []
    results = autoattack.autoattack_dataset(
        setup,
        evaluate_clean(setup),
        radii,
        ["weights"],
        lambda phase, count, total, state: done.append(count),
        log.append,
    )
    return list(results), done, log


def test_attacked_images_are_in_the_ball_and_misclassified():
    (small, large), _, _ = run([0.5, 1e-6])
    assert small.eps == 1e-6 and not small.success.any()
    assert large.success.all()
    assert (linear(large.x).argmax(dim=1) != LABELS).all()
    assert (large.x - to_model(PIXELS)).abs().max() <= 0.5 + 1e-5 and large.x.abs().max() <= 1


def test_radii_are_in_model_units():
    """Greys whose classes end at -0.5, 0 and 0.5: exactly those nearer than eps to a border are broken."""
    borders = torch.tensor([[-0.5, 0.0, 0.5]])

    def bands(x):
        level = x.flatten(1).mean(1, keepdim=True)
        above = torch.cat([torch.zeros_like(level), level - borders], dim=1)
        return torch.cumsum(above * 10, dim=1)

    pixels = torch.arange(0, 256, 3, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    x = to_model(pixels)
    setup, eps = build_setup(bands, pixels, bands(x).argmax(dim=1), "abcd"), 20.5 / 127.5
    part = autoattack.attack_part(setup, torch.arange(len(pixels)), eps)
    near = ((x.flatten(1).mean(1, keepdim=True) - borders).abs() < eps).any(dim=1)
    assert torch.equal(part["success"], near)


def test_finished_parts_are_cached_and_an_interrupt_loses_one_part(own_home, monkeypatch):
    attacked, interrupts = [], [KeyboardInterrupt]
    original = autoattack.attack_part

    def counted(setup, rows, eps):
        if len(attacked) == 2 and interrupts:
            raise interrupts.pop()
        attacked.append(len(rows))
        return original(setup, rows, eps)

    monkeypatch.setattr(autoattack, "attack_part", counted)
    with pytest.raises(KeyboardInterrupt):
        run([0.5])
    assert attacked == [5, 5]
    (result,), done, log = run([0.5])
    assert len(log) == 1 and log[0].startswith("using finished parts from")
    assert attacked == [5, 5, 2] and done == [5, 10, 12] and result.success.all()
    part = next(own_home.rglob("*-part-*.safetensors"))
    part.write_bytes(part.read_bytes()[:100])  # a damaged part runs again
    (again,), _, _ = run([0.5])
    assert len(attacked) == 4 and torch.equal(again.success, result.success)


def test_the_estimated_passes_are_those_of_the_package_for_an_unbreakable_image():
    passes = [0, 0]

    def unbreakable(x):
        passes[0 if x.requires_grad and torch.is_grad_enabled() else 1] += len(x)
        return linear(x) * 0.01 + torch.nn.functional.one_hot(torch.zeros(len(x), dtype=torch.long), 10) * 100

    labels = torch.zeros(2, dtype=torch.long)
    setup = build_setup(unbreakable, PIXELS[:2], labels, "0123456789")
    assert not autoattack.attack_part(setup, torch.arange(2), 0.1)["success"].any()
    gradients, forwards = autoattack.passes_per_image(10)
    assert passes[0] / 2 == pytest.approx(gradients, rel=0.02)
    assert passes[1] / 2 == pytest.approx(forwards, rel=0.02)


def test_missing_requirements_are_reported_before_any_work(monkeypatch):
    with pytest.raises(ConfigError, match="needs 4 classes or more, this checkpoint has 3"):
        autoattack.check_autoattack(3)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AbsentError, match="pip install pyautoattack"):
        autoattack.check_autoattack(10)
