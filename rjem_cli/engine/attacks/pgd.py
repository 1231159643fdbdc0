"""Projected gradient descent inside a ball around an image (Eq. 2; Madry et al. 2018).

Training, generation and `rjem attack` share this loop. Untargeted attacks ascend the loss of the true class. Targeted
attacks, which also make samples, descend the loss of the wanted class.

Shapes: B batch, K classes. `labels_B` are the true classes of an untargeted attack and the wanted ones of a targeted
attack.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from rjem_cli.engine.gradients import LogitsFn, gradient_step, run_step
from rjem_cli.engine.noise import ATTACK_STREAM, standard_normal, uniform

TINY = 1e-12
AttackLoss = Callable[..., Tensor]  # logits_BK, labels_B -> (B,)


class AttackState(NamedTuple):
    """Before a step: the iterate x (B, C, H, W), its logits (B, K), its loss (B,), and the gradient of the loss."""

    step: int
    x: Tensor
    logits_BK: Tensor
    loss_B: Tensor
    gradient: Tensor


# Gets the state before each step. Returns None to continue with all images, or the indices (b,) of those that continue.
AttackCallback = Callable[[AttackState], Tensor | None]


def cross_entropy(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """-log p(y | x), (B,). Its gradient vanishes in float32 where the network is confident."""
    return F.cross_entropy(logits_BK, labels_B, reduction="none")


def margin(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """max_{j != y} f_j - f_y, (B,): positive where y is not the largest (Carlini & Wagner 2017). Never saturates."""
    is_label = F.one_hot(labels_B, logits_BK.shape[1]).bool()
    others_B = logits_BK.masked_fill(is_label, float("-inf")).amax(dim=1)
    return others_B - logits_BK.gather(1, labels_B[:, None]).squeeze(1)


def cross_entropy_until(logits_BK: Tensor, labels_B: Tensor, confidence: float) -> Tensor:
    """-log p(y | x) as long as p(y | x) <= confidence, which is in (0, 1], then constant, (B,). The gradient of images
    beyond it is 0, so the attack no longer moves them (but for rounding by the L2 projection)."""
    return cross_entropy(logits_BK, labels_B).clamp_min(-math.log(confidence))


LOSSES: dict[str, AttackLoss] = {"ce": cross_entropy, "margin": margin}


def attack_loss(loss: str | AttackLoss, targeted: bool) -> AttackLoss:
    """The loss to ascend: away from the true class, or (targeted) towards the wanted one. `loss` is a name in LOSSES or
    a function."""
    loss = LOSSES[loss] if isinstance(loss, str) else loss
    return partial(negative, loss=loss) if targeted else loss


def negative(logits_BK: Tensor, labels_B: Tensor, loss: AttackLoss) -> Tensor:
    """-loss, (B,). Not a closure, because steps with closures are not replayed as CUDA graphs (`StepGraphs`)."""
    return -loss(logits_BK, labels_B)


def is_success(logits_BK: Tensor, labels_B: Tensor, targeted: bool, min_confidence: float = 0.0) -> Tensor:
    """Whether the attack succeeded, bool (B,): the predicted class is the wanted one, or a wrong one if untargeted, and
    has a probability of at least `min_confidence`. NaN logits are never a success."""
    agrees = logits_BK.argmax(dim=1) == labels_B
    success_B = (agrees if targeted else ~agrees) & ~logits_BK.isnan().any(dim=1)
    return success_B & (logits_BK.softmax(dim=1).amax(dim=1) >= min_confidence) if min_confidence else success_B


def default_step_size(eps: float, steps: int) -> float:
    """2.5 * eps / steps: enough to cross the ball, as in Madry et al."""
    return 2.5 * eps / max(1, steps)


def expand_like(values_B: Tensor, x: Tensor) -> Tensor:
    """One value per image, (B,), shaped to broadcast with x (B, ...)."""
    return values_B.view(-1, *(1,) * (x.dim() - 1))


def l2_norm(x: Tensor) -> Tensor:
    """Euclidean norm of each image, at least TINY, shaped (B, 1, 1, 1)."""
    return expand_like(x.flatten(1).norm(dim=1).clamp_min(TINY), x)


def pgd_direction(gradient: Tensor, norm: str) -> Tensor:
    """The steepest step of length one: the sign of the gradient (linf) or the unit gradient (l2)."""
    return gradient.sign() if norm == "linf" else gradient / l2_norm(gradient)


def project(x: Tensor, center: Tensor, eps: float, norm: str) -> Tensor:
    """Into the ball of radius eps around `center`, then into the box [-1, 1]."""
    offset = x - center
    inside = offset.clamp(-eps, eps) if norm == "linf" else offset * (eps / l2_norm(offset)).clamp_max(1)
    return (center + inside).clamp(-1, 1)


def pgd_step(x: Tensor, center: Tensor, gradient: Tensor, step_size: float, eps: float, norm: str) -> Tensor:
    """One step of length `step_size` up the gradient, then back into ball and box (Eq. 2)."""
    return project(x + step_size * pgd_direction(gradient, norm), center, eps, norm)


def random_start(center: Tensor, seeds_B: Tensor, eps: float, norm: str, restart: int = 0) -> Tensor:
    """A uniform draw from the ball around each image, in the box. Row i depends on seeds_B[i] and `restart` only."""
    shape = tuple(center.shape[1:])
    if norm == "linf":
        offset = eps * (2 * uniform(seeds_B, shape, ATTACK_STREAM, 2 * restart) - 1)
    else:
        normals = standard_normal(seeds_B, shape, ATTACK_STREAM, 2 * restart)
        radii = uniform(seeds_B, (1,), ATTACK_STREAM, 2 * restart + 1) ** (1 / normals[0].numel())
        offset = eps * expand_like(radii, center) * normals / l2_norm(normals)
    return project(center + offset, center, eps, norm)


def attack_step(
    logits_fn: LogitsFn,
    x: Tensor,
    center: Tensor,
    labels_B: Tensor,
    *,
    loss_fn: AttackLoss,
    step_size: float,
    eps: float,
    norm: str,
) -> tuple[Tensor, ...]:
    """(x after one PGD step (B, C, H, W); logits (B, K), loss (B,) and gradient at the x before it)."""
    evaluation = gradient_step(logits_fn, x, labels_B, objective=loss_fn)
    return pgd_step(x, center, evaluation.gradient, step_size, eps, norm), *evaluation


def pgd(
    logits_fn: LogitsFn,
    center: Tensor,
    labels_B: Tensor,
    *,
    eps: float,
    steps: int,
    step_size: float | None = None,
    norm: str = "linf",
    loss: str | AttackLoss = "ce",
    targeted: bool = False,
    start: Tensor | None = None,
    callback: AttackCallback | None = None,
) -> Tensor:
    """Attack the images `center` (B, C, H, W) in [-1, 1]; eps and step_size in model units.

    labels_B: the true classes, or the wanted ones if `targeted`. The first iterate is `start`, by default the images.
    Returns the last iterate, in [-1, 1] and within eps of the center. With eps 0 it does not move. If the callback
    returns indices, only those images continue; the attack ends when none is left. Never waits for the device by
    itself.
    """
    step_size = default_step_size(eps, steps) if step_size is None else step_size
    step_fn = partial(attack_step, loss_fn=attack_loss(loss, targeted), step_size=step_size, eps=eps, norm=norm)
    x = center if start is None else start
    for step in range(steps if eps > 0 else 0):
        x_next, logits_BK, loss_B, gradient = run_step(step_fn, logits_fn, x, center, labels_B)
        kept = None if callback is None else callback(AttackState(step, x, logits_BK, loss_B, gradient))
        x = x_next
        if kept is not None:
            x, center, labels_B = x[kept], center[kept], labels_B[kept]
            if len(kept) == 0:
                break
    return x.detach()
