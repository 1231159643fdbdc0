"""Auto-PGD (Croce & Hein 2020, Algorithm 1): PGD with momentum whose steps halve where they stop paying.

The state holds one row an image, so that images which are broken can leave the batch in the middle of a run.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rjem_cli.engine.chains.pgd import pgd_direction, project

MOMENTUM = 0.75  # alpha: weight of the new step against the last one
LEAST_RISES = 0.75  # rho: share of steps that must raise the loss between two checkpoints
FIRST_PERIOD, PERIOD_DECREASE, LEAST_PERIOD = 0.22, 0.03, 0.06  # shares of all steps


class ApgdState(NamedTuple):
    """B rows each. `loss_B` and `gradient` belong to `x`; the fields of `best_` to the largest loss so far; those of
    `checked_` to the last checkpoint."""

    x: Tensor
    previous: Tensor
    center: Tensor
    step_size: Tensor  # (B, 1, 1, 1), model units
    loss_B: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss_B: Tensor
    rises_B: Tensor
    checked_best_B: Tensor
    checked_halved_B: Tensor


def checkpoints(steps: int) -> frozenset[int]:
    """The steps after which step sizes are looked at: p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03,
    0.06), times `steps`, rounded up (Section 3)."""
    before, now, places = 0.0, FIRST_PERIOD, []
    while now <= 1:
        places.append(math.ceil(round(now * steps, 6)))  # 0.57 is a little more than 57 hundredths
        before, now = now, now + max(now - before - PERIOD_DECREASE, LEAST_PERIOD)
    return frozenset(places)


def apgd_start(x: Tensor, center: Tensor, loss_B: Tensor, gradient: Tensor, eps: float) -> ApgdState:
    """Before the first step, which is 2 * eps long."""
    rows = (len(x), *(1,) * (x.dim() - 1))
    return ApgdState(
        x=x,
        previous=x,
        center=center,
        step_size=torch.full(rows, 2 * eps, device=x.device),
        loss_B=loss_B,
        best=x,
        best_gradient=gradient,
        best_loss_B=loss_B,
        rises_B=torch.zeros_like(loss_B),
        checked_best_B=loss_B,
        checked_halved_B=torch.ones_like(loss_B, dtype=torch.bool),  # the first step is new at the first checkpoint
    )


def apgd_move(state: ApgdState, gradient: Tensor, eps: float, norm: str, first: bool) -> ApgdState:
    """x after one step up the gradient with momentum, in ball and box."""
    x, center = state.x, state.center
    plain = project(x + state.step_size * pgd_direction(gradient, norm), center, eps, norm)
    momentum = 1.0 if first else MOMENTUM
    moved = project(x + momentum * (plain - x) + (1 - momentum) * (x - state.previous), center, eps, norm)
    return state._replace(x=moved, previous=x)


def apgd_look(state: ApgdState, loss_B: Tensor, gradient: Tensor, period: int | None) -> tuple[ApgdState, Tensor]:
    """Take in loss and gradient at the new x; with `period`, the number of steps since the last checkpoint, halve the
    steps that do not pay and go back to the best point there. Returns the state and the gradient to move along."""
    better = loss_B > state.best_loss_B
    state = state._replace(
        best=torch.where(like(better, state.x), state.x, state.best),
        best_gradient=torch.where(like(better, gradient), gradient, state.best_gradient),
        best_loss_B=torch.where(better, loss_B, state.best_loss_B),
        rises_B=state.rises_B + (loss_B > state.loss_B),
        loss_B=loss_B,
    )
    if period is None:
        return state, gradient
    too_few = state.rises_B < LEAST_RISES * period  # condition 1
    stuck = ~state.checked_halved_B & (state.checked_best_B == state.best_loss_B)  # condition 2
    halve = too_few | stuck
    state = state._replace(
        step_size=torch.where(like(halve, state.step_size), state.step_size / 2, state.step_size),
        x=torch.where(like(halve, state.x), state.best, state.x),
        loss_B=torch.where(halve, state.best_loss_B, loss_B),
        rises_B=torch.zeros_like(state.rises_B),
        checked_best_B=state.best_loss_B,
        checked_halved_B=halve,
    )
    return state, torch.where(like(halve, gradient), state.best_gradient, gradient)


def like(rows_B: Tensor, x: Tensor) -> Tensor:
    """(B,) shaped to broadcast with x, which has B rows."""
    return rows_B.view(-1, *(1,) * (x.dim() - 1))
