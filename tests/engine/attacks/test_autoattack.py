"""AutoAttack through its package: its cost is what it says, its parts survive a stop, and it is absent with a word."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from rjem_cli.config import RuntimeOptions
from rjem_cli.engine.attacks.robustness import AttackDataset, AttackPlan, evaluate_clean
from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.data.images import ImageSet, to_model
from rjem_cli.engine.metrics import autoattack
from rjem_cli.engine.runtime import start_runtime
from rjem_cli.errors import AbsentError, ConfigError

CPU = torch.device("cpu")
RUNTIME = start_runtime(RuntimeOptions(device="cpu"))
generator = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(10, 36, generator=generator)
PIXELS = torch.randint(60, 196, (12, 1, 6, 6), generator=generator).to(torch.uint8)


def linear(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1) @ WEIGHT.T


CHOSEN = AttackDataset(
    ImageSet(PIXELS, linear(to_model(PIXELS)).argmax(dim=1), tuple("0123456789")), torch.arange(12), None, seed=0
)


said: list[str] = []


def run(model, radii, batch_size=5):
    clean = evaluate_clean(model, AttackPlan(), CHOSEN, CPU, BatchSizer(12))
    progress = []
    results = list(
        autoattack.autoattack_images(
            model,
            CHOSEN,
            clean,
            radii,
            "linf",
            checkpoint_sha256="abc",
            runtime=RUNTIME,
            batch_size=batch_size,
            report=lambda done, total, text: progress.append(done),
            say=said.append,
        )
    )
    return results, progress


def test_hits_are_in_the_ball_and_hit(own_home):
    (small, large), _ = run(linear, [0.5, 1e-6])
    assert small.eps == 1e-6 and not small.hit.any()
    assert large.hit.all()
    assert (linear(large.x).argmax(dim=1) != CHOSEN.images.labels).all()
    assert (large.x - to_model(PIXELS)).abs().max() <= 0.5 + 1e-5 and large.x.abs().max() <= 1


def test_radii_are_in_model_units():
    """Greys whose classes end at -0.5, 0 and 0.5: exactly those nearer than eps to a border fall."""
    borders = torch.tensor([[-0.5, 0.0, 0.5]])

    def bands(x):
        level = x.flatten(1).mean(1, keepdim=True)
        above = torch.cat([torch.zeros_like(level), level - borders], dim=1)  # each class's score: how far it reaches
        return torch.cumsum(above * 10, dim=1)

    pixels = torch.arange(0, 256, 3, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    x = to_model(pixels)
    chosen = AttackDataset(ImageSet(pixels, bands(x).argmax(dim=1), tuple("abcd")), torch.arange(len(pixels)), None, 0)
    eps = 20.5 / 127.5
    found = autoattack.attack_part(bands, chosen, torch.arange(len(pixels)), eps, "linf", CPU)
    near = ((x.flatten(1).mean(1, keepdim=True) - borders).abs() < eps).any(dim=1)
    assert torch.equal(found["hit"], near)


def test_what_is_done_is_kept_and_a_stop_loses_one_part(own_home, monkeypatch):
    worked, go_on = [], []
    original = autoattack.attack_part

    def counted(*args):
        if len(worked) == 2 and not go_on:
            raise KeyboardInterrupt
        worked.append(len(args[2]))
        return original(*args)

    monkeypatch.setattr(autoattack, "attack_part", counted)
    said.clear()
    with pytest.raises(KeyboardInterrupt):
        run(linear, [0.5])
    assert worked == [5, 5]
    go_on.append(True)
    (result,), progress = run(linear, [0.5])
    assert len(said) == 1 and said[0].startswith("parts that are done already are taken from")
    assert worked == [5, 5, 2] and progress == [5, 10, 12] and result.hit.all()
    part = next(own_home.glob("cache/attacks/*/*.safetensors"))
    part.write_bytes(part.read_bytes()[:100])  # torn by something else: that part runs again
    (again,), _ = run(linear, [0.5])
    assert len(worked) == 4 and torch.equal(again.hit, result.hit)


def test_the_cost_is_what_the_package_does_to_an_image_that_withstands_all():
    passes = [0, 0]

    def unbreakable(x):
        passes[0 if x.requires_grad and torch.is_grad_enabled() else 1] += len(x)
        return linear(x) * 0.01 + torch.nn.functional.one_hot(torch.zeros(len(x), dtype=torch.long), 10) * 100

    labels = torch.zeros(2, dtype=torch.long)
    chosen = AttackDataset(ImageSet(PIXELS[:2], labels, CHOSEN.images.class_names), torch.arange(2), None, 0)
    found = autoattack.attack_part(unbreakable, chosen, torch.arange(2), 0.1, "linf", CPU)
    assert not found["hit"].any()
    gradients, forwards = autoattack.passes_per_image(10)
    assert passes[0] / 2 == pytest.approx(gradients, rel=0.02)
    assert passes[1] / 2 == pytest.approx(forwards, rel=0.02)


def test_what_it_needs_is_said_first(monkeypatch):
    with pytest.raises(ConfigError, match="needs 4 classes or more, this checkpoint has 3"):
        autoattack.check_autoattack(3)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AbsentError, match="pip install pyautoattack"):
        autoattack.check_autoattack(10)
