"""Projected gradient descent inside a ball around the start (Eq. 2; Madry et al. 2018), the same loop as a Langevin
chain: start, gradient, step, projection.

Untargeted attacks ascend the cross-entropy of the true class; targeted ones, which make samples, descend that of the
wanted class.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from rjem_cli.engine.chains.losses import attack_loss
from rjem_cli.engine.chains.moves import Moves, Question
from rjem_cli.engine.chains.noise import ATTACK_STREAM, standard_normal, uniform

Logits = Callable[[Tensor], Tensor]  # x (B, C, H, W) -> (B, K)
TINY = 1e-12


def default_step_size(eps: float, steps: int) -> float:
    """2.5 * eps / steps: enough to cross the ball, as Madry et al. choose it."""
    return 2.5 * eps / max(1, steps)


def l2_norm(x: Tensor) -> Tensor:
    """Euclidean norm of each image, shaped (B, 1, 1, 1)."""
    return x.flatten(1).norm(dim=1).clamp_min(TINY).view(-1, *(1,) * (x.dim() - 1))


def pgd_direction(gradient: Tensor, norm: str) -> Tensor:
    """The steepest step of length one: sign of the gradient (linf) or the unit gradient (l2)."""
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
        offset = eps * radii.view(-1, *(1,) * len(shape)) * normals / l2_norm(normals)
    return project(center + offset, center, eps, norm)


def pgd(
    center: Tensor,
    labels_B: Tensor,
    *,
    eps: float,
    steps: int,
    step_size: float | None = None,
    norm: str = "linf",
    targeted: bool = False,
) -> Moves:
    """`steps` of PGD from `center`, images in [-1, 1], (B, C, H, W), on a network that gives logits. eps and step_size
    in model units.

    Ends with the last iterate, in [-1, 1] and within eps of the center; eps 0 or steps 0 with the center. No host
    sync. To attack a data set, with restarts and the best iterate, see evaluation/attack.py.
    """
    if step_size is None:
        step_size = default_step_size(eps, steps)
    loss = attack_loss("ce", targeted)
    x = center
    for _ in range(steps if eps > 0 else 0):
        _, gradient = yield Question(x, lambda logits_BK: loss(logits_BK, labels_B))
        x = pgd_step(x, center, gradient, step_size, eps, norm)
    return x
