"""Auto-PGD (Croce & Hein 2020, Algorithm 1): PGD with momentum, and a step size that is halved when the
loss stops increasing."""

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rjem_cli.engine.attacks.pgd import AttackCallback, AttackState, attack_loss, expand_like, pgd_direction, project
from rjem_cli.engine.gradients import LogitsFn, gradient_step, run_step

MOMENTUM = 0.75  # alpha: weight of the new step; the previous step has 1 - alpha
MIN_INCREASE_SHARE = 0.75  # rho: share of steps that must increase the loss between two checkpoints
FIRST_PERIOD, PERIOD_DECREASE, MIN_PERIOD = 0.22, 0.03, 0.06  # shares of all steps


class ApgdState(NamedTuple):
    """One row per image, so that images can leave the batch in the middle of an attack. `best_...` belongs to the
    largest loss so far, `checked_...` to the previous checkpoint."""

    x: Tensor
    previous: Tensor
    center: Tensor
    labels_B: Tensor
    step_size: Tensor  # (B, 1, 1, 1), model units
    loss_B: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss_B: Tensor
    increases_B: Tensor
    best_at_checkpoint_B: Tensor
    halved_at_checkpoint_B: Tensor

    def rows(self, rows: Tensor) -> "ApgdState":
        return ApgdState(*(part[rows] for part in self))


def checkpoint_steps(steps: int) -> list[int]:
    """Steps after which step sizes are checked, ascending: p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} -
    0.03, 0.06), times `steps`, rounded up (Section 3)."""
    previous, current, checkpoints = 0.0, FIRST_PERIOD, set()
    while current <= 1:
        checkpoints.add(math.ceil(round(current * steps, 6)))  # in binary, 0.57 is slightly more than 57 / 100
        previous, current = current, current + max(current - previous - PERIOD_DECREASE, MIN_PERIOD)
    return sorted(checkpoints)


def apgd_start(x: Tensor, center: Tensor, labels_B: Tensor, eps: float) -> ApgdState:
    """Before anything is evaluated. The first step is 2 * eps long."""
    lowest_B = x.new_full((len(x),), -torch.inf)
    return ApgdState(
        x=x,
        previous=x,
        center=center,
        labels_B=labels_B,
        step_size=expand_like(x.new_full((len(x),), 2 * eps), x),
        loss_B=lowest_B,
        best=x,
        best_gradient=torch.zeros_like(x),
        best_loss_B=lowest_B,
        increases_B=torch.full_like(lowest_B, -1),  # cancels the increase from -inf to the loss of the start
        best_at_checkpoint_B=lowest_B,
        halved_at_checkpoint_B=torch.ones_like(labels_B, dtype=torch.bool),  # condition 2 needs an earlier checkpoint
    )


def apgd_step(state: ApgdState, gradient: Tensor, eps: float, norm: str, first: bool) -> ApgdState:
    """x after one step up the gradient with momentum, in ball and box."""
    x, center = state.x, state.center
    z = project(x + state.step_size * pgd_direction(gradient, norm), center, eps, norm)  # z^(k+1) of Algorithm 1
    momentum = 1.0 if first else MOMENTUM
    x_next = project(x + momentum * (z - x) + (1 - momentum) * (x - state.previous), center, eps, norm)
    return state._replace(x=x_next, previous=x)


def apgd_update(state: ApgdState, loss_B: Tensor, gradient: Tensor, period: int | None) -> tuple[ApgdState, Tensor]:
    """Record loss and gradient at the new x. With `period`, the number of steps since the previous checkpoint, halve
    the step sizes under which the loss did not increase enough, and return to the best point there. Returns the state
    and the gradient to follow."""
    better = loss_B > state.best_loss_B
    state = state._replace(
        best=torch.where(expand_like(better, state.x), state.x, state.best),
        best_gradient=torch.where(expand_like(better, gradient), gradient, state.best_gradient),
        best_loss_B=torch.where(better, loss_B, state.best_loss_B),
        increases_B=state.increases_B + (loss_B > state.loss_B),
        loss_B=loss_B,
    )
    if period is None:
        return state, gradient
    too_few = state.increases_B < MIN_INCREASE_SHARE * period  # condition 1
    stuck = ~state.halved_at_checkpoint_B & (state.best_at_checkpoint_B == state.best_loss_B)  # condition 2
    halve = too_few | stuck
    state = state._replace(
        step_size=torch.where(expand_like(halve, state.step_size), state.step_size / 2, state.step_size),
        x=torch.where(expand_like(halve, state.x), state.best, state.x),
        loss_B=torch.where(halve, state.best_loss_B, loss_B),
        increases_B=torch.zeros_like(state.increases_B),
        best_at_checkpoint_B=state.best_loss_B,
        halved_at_checkpoint_B=halve,
    )
    return state, torch.where(expand_like(halve, gradient), state.best_gradient, gradient)


def apgd(
    logits_fn: LogitsFn,
    center: Tensor,
    labels_B: Tensor,
    *,
    eps: float,
    steps: int,
    norm: str = "linf",
    loss: str = "ce",
    targeted: bool = False,
    start: Tensor | None = None,
    callback: AttackCallback | None = None,
) -> Tensor:
    """`pgd` with adaptive steps: the same arguments, result and callback, without `step_size`."""
    evaluate, checkpoints = partial(gradient_step, objective=attack_loss(loss, targeted)), checkpoint_steps(steps)
    state = apgd_start(center if start is None else start, center, labels_B, eps)
    for step in range(steps if eps > 0 else 0):
        logits_BK, loss_B, gradient = run_step(evaluate, logits_fn, state.x, state.labels_B)
        kept = None if callback is None else callback(AttackState(step, state.x, logits_BK, loss_B, gradient))
        if kept is not None:
            state, loss_B, gradient = state.rows(kept), loss_B[kept], gradient[kept]
            if len(kept) == 0:
                break
        previous = max((checkpoint for checkpoint in checkpoints if checkpoint < step), default=0)
        period = step - previous if step in checkpoints and step else None
        state, gradient = apgd_update(state, loss_B, gradient, period)
        state = apgd_step(state, gradient, eps, norm, first=step == 0)
    return state.x.detach()
