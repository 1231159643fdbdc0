"""APGD takes the paper's checkpoints, halves steps that do not pay, and reaches the worst corner of a linear model."""

import pytest
import torch
from torch import nn

from rjem_cli.engine.attacks.apgd import apgd, apgd_start, checkpoint_steps
from rjem_cli.engine.attacks.pgd import cross_entropy, margin


def test_the_checkpoints_of_a_hundred_steps_are_the_papers():
    # p: 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99 (Croce & Hein 2020, Section 3)
    assert checkpoint_steps(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert all(step <= 7 for step in checkpoint_steps(7))


def ascend(value, start, eps, steps):
    """APGD on `value`, a function x (B, C, H, W) -> (B,). Returns its iterates (steps + 1, B, C, H, W)."""
    iterates = []

    def logits_fn(x):  # two classes whose margin is the value
        return torch.stack([torch.zeros(len(x)), value(x)], dim=1)

    labels = torch.zeros(len(start), dtype=torch.long)
    last = apgd(
        logits_fn, start, labels, eps=eps, steps=steps, loss="margin", callback=lambda state: iterates.append(state.x)
    )
    return torch.stack([*iterates, last])


def test_a_linear_loss_ends_in_the_worst_corner():
    weight = torch.randn(1, 1, 2, 5, generator=torch.Generator().manual_seed(0))
    start = torch.zeros(3, 1, 2, 5)
    iterates = ascend(lambda x: (x * weight).flatten(1).sum(1), start, 0.25, 30)
    torch.testing.assert_close(iterates[-1], 0.25 * weight.sign().expand_as(start))


def test_the_first_step_is_two_eps_long():
    x = torch.zeros(3, 1, 2, 5)
    state = apgd_start(x, x, torch.zeros(3, dtype=torch.long), 0.25)
    torch.testing.assert_close(state.step_size.flatten(), torch.full((3,), 0.5))


def test_steps_that_oscillate_are_halved_around_the_best_point():
    # a peak inside the ball: steps of 2 eps jump over it, so the loss cannot rise three times out of four
    peak, eps = 0.013, 0.1
    iterates = ascend(lambda x: -(x - peak).abs().flatten(1).sum(1), torch.zeros(1, 1, 1, 1), eps, 100).flatten()
    lengths = (iterates[1:] - iterates[:-1]).abs()
    assert lengths[:20].max() > eps and lengths[-8:].max() <= eps / 8
    assert (iterates - peak).abs().min() < 0.002
    assert (iterates[-8:] - peak).abs().max() < eps / 4


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_is_the_algorithm_of_its_authors(norm):
    """The package of the paper's authors, from the same start, has the same best losses: momentum, checkpoints, both
    conditions and the return to the best point agree. Rounding differs in the last bit, which changes L2 steps."""
    from pyautoattack.autopgd_base import APGDAttack

    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 5))
    network.requires_grad_(False)
    pixel = torch.rand(200, 1, 6, 6)
    x = 2 * pixel - 1
    labels = network(x).argmax(dim=1)
    eps = 0.2 if norm == "linf" else 1.0
    theirs = APGDAttack(
        lambda pixel: network(2 * pixel - 1), n_iter=100, norm=norm.capitalize(), eps=eps / 2, device="cpu"
    )
    theirs.init_hyperparam(pixel)
    expected = theirs.attack_single_run(pixel, labels, x_init=pixel)[2]
    losses = []
    last = apgd(network, x, labels, eps=eps, steps=100, norm=norm, callback=lambda state: losses.append(state.loss_B))
    best = torch.stack([*losses, cross_entropy(network(last), labels)]).amax(dim=0)
    assert ((best - expected).abs() < 1e-3).float().mean() > (0.97 if norm == "linf" else 0.85)
    assert best.mean() == pytest.approx(expected.mean().item(), rel=2e-3)


def test_the_margin_is_positive_exactly_where_the_class_is_not_the_largest():
    logits = torch.randn(200, 5, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(200) % 5
    assert torch.equal(margin(logits, labels) > 0, logits.argmax(dim=1) != labels)
    assert (cross_entropy(logits, labels) > 0).all()
