"""One attempt of an attack on a batch: PGD or APGD from one start, the best iterate kept, images that are broken
leaving the batch.

Radii and steps in model units. Shapes: B images of the batch, b those still in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from rjem_cli.engine.chains.apgd import ApgdState, apgd_look, apgd_move, apgd_start, checkpoints, like
from rjem_cli.engine.chains.losses import AttackLoss, attack_loss, is_hit
from rjem_cli.engine.chains.pgd import Logits, default_step_size, pgd_step
from rjem_cli.errors import RjemError

CHECK_EVERY = 5  # steps between two looks, each a host sync, at who has left
StateT = TypeVar("StateT", bound=tuple[Tensor, ...])


@dataclass(frozen=True)
class AttackPlan:
    """How each image is attacked; the names are those of `rjem attack`."""

    norm: str = "linf"
    method: str = "pgd"
    steps: int = 20
    step_size: float | None = None
    loss: str = "ce"
    restarts: int = 1
    start: str = "random"
    iterate: str = "best"
    targeted: bool = False

    @property
    def gradient_steps(self) -> int:
        """Network passes (forward and backward) that one image costs at most, for one radius."""
        return self.steps * self.restarts

    @property
    def passes(self) -> float:
        """The same with the pass forward in which each attempt sees where it ended."""
        return self.gradient_steps + self.restarts / 3


class Attempt(NamedTuple):
    """What was found for each image: x (B, C, H, W), whether it wins, the loss there."""

    x: Tensor
    hit_B: Tensor
    loss_B: Tensor


class PgdState(NamedTuple):
    x: Tensor
    center: Tensor


class Walk(Protocol):
    """How an attack moves. `begin` and `look` take loss and gradient at x; `look` gives the gradient to move along."""

    def begin(self, x: Tensor, center: Tensor, loss_B: Tensor, gradient: Tensor) -> Any: ...
    def look(self, state: Any, loss_B: Tensor, gradient: Tensor, step: int) -> tuple[Any, Tensor]: ...
    def move(self, state: Any, gradient: Tensor, step: int) -> Any: ...


@dataclass(frozen=True)
class PgdWalk:
    eps: float
    norm: str
    step_size: float

    def begin(self, x: Tensor, center: Tensor, loss_B: Tensor, gradient: Tensor) -> PgdState:
        return PgdState(x, center)

    def look(self, state: PgdState, loss_B: Tensor, gradient: Tensor, step: int) -> tuple[PgdState, Tensor]:
        return state, gradient

    def move(self, state: PgdState, gradient: Tensor, step: int) -> PgdState:
        x = pgd_step(state.x, state.center, gradient, self.step_size, self.eps, self.norm)
        return state._replace(x=x)


@dataclass(frozen=True)
class ApgdWalk:
    eps: float
    norm: str
    checkpoints: tuple[int, ...]  # ascending

    def begin(self, x: Tensor, center: Tensor, loss_B: Tensor, gradient: Tensor) -> ApgdState:
        return apgd_start(x, center, loss_B, gradient, self.eps)

    def look(self, state: ApgdState, loss_B: Tensor, gradient: Tensor, step: int) -> tuple[ApgdState, Tensor]:
        before = max((place for place in self.checkpoints if place < step), default=0)
        return apgd_look(state, loss_B, gradient, step - before if step in self.checkpoints else None)

    def move(self, state: ApgdState, gradient: Tensor, step: int) -> ApgdState:
        return apgd_move(state, gradient, self.eps, self.norm, first=step == 0)


def walk_of(plan: AttackPlan, eps: float) -> Walk:
    if plan.method == "apgd":
        return ApgdWalk(eps, plan.norm, tuple(sorted(checkpoints(plan.steps))))
    step_size = default_step_size(eps, plan.steps) if plan.step_size is None else plan.step_size
    return PgdWalk(eps, plan.norm, step_size)


def attempt(
    logits_of: Logits, plan: AttackPlan, eps: float, start: Tensor, center: Tensor, labels_B: Tensor
) -> Attempt:
    """Attack `center` (B, C, H, W) from `start`, both in [-1, 1]. labels_B: the true classes, or the wanted ones of a
    targeted plan. With iterate "best" any iterate counts, the start included, and an image leaves the batch
    within CHECK_EVERY steps of its hit; where none hits, the one with the largest loss is returned. Raises RjemError
    for gradients that are not finite."""
    loss, walk = attack_loss(plan.loss, plan.targeted), walk_of(plan, eps)
    nothing = torch.full((len(start),), -torch.inf, device=start.device)
    best = Attempt(start.clone(), torch.zeros_like(labels_B, dtype=torch.bool), nothing)
    rows, state = torch.arange(len(start), device=start.device), PgdState(start, center)
    lost_B = torch.zeros_like(best.hit_B)
    steps = plan.steps if eps > 0 else 0
    for step in range(steps + 1):
        last = step == steps
        logits_bK, loss_b, gradient = evaluate(logits_of, loss, state.x, labels_B, with_gradient=not last)
        lost_B[rows] |= ~gradient.isfinite().flatten(1).all(dim=1)
        hit_b = is_hit(logits_bK, labels_B, plan.targeted)
        if plan.iterate == "best" or last:
            best = improved(best, rows, Attempt(state.x, hit_b, loss_b))
        if last:
            break
        state = walk.begin(state.x, center, loss_b, gradient) if step == 0 else state
        if step:
            state, gradient = walk.look(state, loss_b, gradient, step)
        if plan.iterate == "best" and step % CHECK_EVERY == 0:
            stay = (~best.hit_B[rows]).nonzero().squeeze(1)
            if len(stay) == 0:
                break
            rows, labels_B, gradient = rows[stay], labels_B[stay], gradient[stay]
            state = rows_of(state, stay)
        state = walk.move(state, gradient, step)
    if lost := int(lost_B.sum()):  # the sign of what is no number is 0: the attack would stand still
        raise RjemError(
            f"the gradients of {lost} of {len(start)} images are not finite, so they cannot be attacked; "
            "look at the network (or in fp16, take --precision fp32)"
        )
    return best


def evaluate(
    logits_of: Logits, loss: AttackLoss, x: Tensor, labels_B: Tensor, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, K), loss (B,) and its gradient by x (zero where it is not wanted), in one pass."""
    x = x.detach().requires_grad_(with_gradient)
    with torch.set_grad_enabled(with_gradient):
        logits_BK = logits_of(x)
        loss_B = loss(logits_BK, labels_B)
        gradient = torch.autograd.grad(loss_B.sum(), x)[0] if with_gradient else torch.zeros_like(x)
    return logits_BK.detach(), loss_B.detach(), gradient


def improved(best: Attempt, rows_b: Tensor, found: Attempt) -> Attempt:
    """The first hit of each image, else its largest loss."""
    earlier = rows_of(best, rows_b)
    better = ~earlier.hit_B & (found.hit_B | (found.loss_B > earlier.loss_B))
    for kept, old, new in zip(best, earlier, found):
        kept[rows_b] = torch.where(like(better, old), new, old)
    return best


def rows_of(state: StateT, rows: Tensor) -> StateT:
    """The same named tuple with these rows of each tensor."""
    make: Callable[..., StateT] = type(state)
    return make(*(part[rows] for part in state))
