"""APGD takes the paper's checkpoints, halves steps that do not pay, and reaches the worst corner of a linear model."""

import torch

from rjem_cli.engine.chains.apgd import apgd_look, apgd_move, apgd_start, checkpoints
from rjem_cli.engine.chains.losses import cross_entropy, margin


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


def test_the_margin_is_positive_exactly_where_the_class_is_not_the_largest():
    logits = torch.randn(200, 5, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(200) % 5
    assert torch.equal(margin(logits, labels) > 0, logits.argmax(dim=1) != labels)
    assert (cross_entropy(logits, labels) > 0).all()
