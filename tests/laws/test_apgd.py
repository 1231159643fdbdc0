"""APGD takes the paper's checkpoints, halves steps that do not pay, and reaches the worst corner of a linear model."""

import pytest
import torch
from torch import nn

from rjem_cli.engine.attacks.apgd import apgd_look, apgd_move, apgd_start, checkpoints
from rjem_cli.engine.attacks.losses import cross_entropy, margin
from rjem_cli.engine.attacks.search import AttackPlan, evaluate, walk_of


def test_the_checkpoints_of_a_hundred_steps_are_the_papers():
    # p: 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99 (Croce & Hein 2020, Section 3)
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert all(place <= 7 for place in checkpoints(7))


def climb(loss, gradient_of, start, eps, steps):
    """APGD on a loss given with its gradient; returns the states after each look."""
    places, states = sorted(checkpoints(steps)), []
    state = apgd_start(start, start, loss(start), gradient_of(start), eps)
    gradient = gradient_of(start)
    for step in range(steps + 1):
        if step:
            before = max((place for place in places if place < step), default=0)
            period = step - before if step in places else None
            state, gradient = apgd_look(state, loss(state.x), gradient_of(state.x), period)
            states.append(state)
        state = apgd_move(state, gradient, eps, "linf", first=step == 0)
    return states


def test_a_linear_loss_ends_in_the_corner_and_the_first_step_is_two_eps():
    weight = torch.randn(1, 1, 2, 5, generator=torch.Generator().manual_seed(0))
    start = torch.zeros(3, 1, 2, 5)
    states = climb(lambda x: (x * weight).flatten(1).sum(1), lambda x: weight.expand_as(x), start, 0.25, 30)
    torch.testing.assert_close(states[-1].best, 0.25 * weight.sign().expand_as(start))
    torch.testing.assert_close(
        apgd_start(start, start, torch.zeros(3), start, 0.25).step_size.flatten(), torch.full((3,), 0.5)
    )


def test_steps_that_oscillate_are_halved_and_the_search_goes_on_from_the_best_point():
    # a peak inside the ball: steps of 2 eps jump over it, so the loss cannot rise three times out of four
    peak = torch.full((1, 1, 1, 1), 0.013)
    start = torch.zeros(1, 1, 1, 1)
    states = climb(lambda x: -(x - peak).abs().flatten(1).sum(1), lambda x: (peak - x).sign(), start, 0.1, 100)
    sizes = torch.cat([state.step_size.flatten() for state in states])
    assert (sizes[1:] <= sizes[:-1]).all() and sizes[-1] <= sizes[0] / 16
    assert (states[-1].best - peak).abs() < 0.002
    best = torch.stack([state.best_loss_B for state in states])
    assert (best[1:] >= best[:-1]).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_is_the_algorithm_of_its_authors(norm):
    """The package of the paper's authors, from the same start, finds the same best losses: momentum, checkpoints, both
    conditions and the return to the best point are the same. Its rounding differs by an ulp, which an L2 step feels."""
    from pyautoattack.autopgd_base import APGDAttack

    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 5))
    network.requires_grad_(False)
    pixel = torch.rand(200, 1, 6, 6)
    labels = network(2 * pixel - 1).argmax(dim=1)
    eps = 0.2 if norm == "linf" else 1.0
    theirs = APGDAttack(
        lambda pixel: network(2 * pixel - 1), n_iter=100, norm=norm.capitalize(), eps=eps / 2, device="cpu"
    )
    theirs.init_hyperparam(pixel)
    expected = theirs.attack_single_run(pixel, labels, x_init=pixel)[2]
    x = 2 * pixel - 1

    def loss_and_gradient(x):
        return evaluate(network, cross_entropy, x, labels, with_gradient=True)[1:]

    walk = walk_of(AttackPlan(norm=norm, method="apgd", steps=100), eps)
    loss, gradient = loss_and_gradient(x)
    state = walk.begin(x, x, loss, gradient)
    for step in range(101):
        if step:
            state, gradient = walk.look(state, *loss_and_gradient(state.x), step)
        if step < 100:
            state = walk.move(state, gradient, step)
    same = (state.best_loss_B - expected).abs() < 1e-3
    assert same.float().mean() > (0.97 if norm == "linf" else 0.85)
    assert state.best_loss_B.mean() == pytest.approx(expected.mean().item(), rel=2e-3)


def test_the_margin_is_positive_exactly_where_the_class_is_not_the_largest():
    logits = torch.randn(200, 5, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(200) % 5
    assert torch.equal(margin(logits, labels) > 0, logits.argmax(dim=1) != labels)
    assert (cross_entropy(logits, labels) > 0).all()
