"""Robust accuracy: every restart on every image that is still robust, at one radius after another.

An image counts as robust at a radius if it is classified correctly and no restart at that or a smaller radius succeeds.
So the curve never rises, and an image that has been broken costs nothing more. Radii and steps in model units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rjem_cli.engine.attacks.apgd import apgd, broadcast_rows
from rjem_cli.engine.attacks.eval_data import AttackDataset
from rjem_cli.engine.attacks.pgd import AttackState, attack_loss, is_success, pgd, random_start
from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.callbacks import noop
from rjem_cli.engine.data.images import to_model
from rjem_cli.engine.gradients import Logits, value_and_grad
from rjem_cli.engine.metrics.accuracy import Accuracy
from rjem_cli.errors import RjemError

DROP_EVERY = 5  # steps between two checks, each a host sync, for images that the attack has broken

AttackProgress = Callable[[int, int, str], None]  # done, the most there can be, what is going on


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
        """The same, with the forward pass in which each restart checks its last iterate."""
        return self.gradient_steps + self.restarts / 3


class AttackResult(NamedTuple):
    """Per image: the attacked x (B, C, H, W), whether the attack succeeded (B,), and the loss there (B,)."""

    x: Tensor
    success_B: Tensor
    loss_B: Tensor


class BestIterate:
    """A callback of `pgd` and `apgd` that keeps the best iterate of each image: the first success, else the largest
    loss. Every DROP_EVERY steps it drops the images on which the attack has succeeded."""

    def __init__(self, start: Tensor, labels_B: Tensor, plan: AttackPlan):
        self.plan, self.labels_B = plan, labels_B
        lowest_B = start.new_full((len(start),), -torch.inf)
        self.best = AttackResult(start.clone(), torch.zeros_like(labels_B, dtype=torch.bool), lowest_B)
        self.invalid_B = torch.zeros_like(self.best.success_B)  # images with a gradient that is not finite
        self.rows = torch.arange(len(start), device=start.device)  # those still in the batch

    def __call__(self, state: AttackState) -> Tensor | None:
        self.invalid_B[self.rows] |= ~state.gradient.isfinite().flatten(1).all(dim=1)
        if self.plan.iterate != "best":
            return None
        self.record(state.x, state.logits_BK, state.loss_B)
        if state.step % DROP_EVERY:
            return None
        remaining = (~self.best.success_B[self.rows]).nonzero().squeeze(1)
        self.rows = self.rows[remaining]
        return remaining

    def record(self, x: Tensor, logits_BK: Tensor, loss_B: Tensor) -> None:
        """Take over what is better than the best so far."""
        success_B = is_success(logits_BK, self.labels_B[self.rows], self.plan.targeted)
        earlier = AttackResult(*(part[self.rows] for part in self.best))
        better = ~earlier.success_B & (success_B | (loss_B > earlier.loss_B))
        for kept, old, new in zip(self.best, earlier, (x, success_B, loss_B)):
            kept[self.rows] = torch.where(broadcast_rows(better, old), new, old)


def run_restart(
    logits_of: Logits, plan: AttackPlan, eps: float, start: Tensor, center: Tensor, labels_B: Tensor
) -> AttackResult:
    """Attack `center` (B, C, H, W) from `start`, both in [-1, 1]. labels_B: the true classes, or the wanted ones of a
    targeted plan. With iterate "best" any iterate counts, the start included; with "last" only the last one. Raises
    RjemError for gradients that are not finite."""
    best = BestIterate(start, labels_B, plan)
    options: dict[str, Any] = {"eps": eps, "steps": plan.steps, "norm": plan.norm, "loss": plan.loss}
    options |= {"targeted": plan.targeted, "start": start, "callback": best}
    if plan.method == "apgd":
        x = apgd(logits_of, center, labels_B, **options)
    else:
        x = pgd(logits_of, center, labels_B, step_size=plan.step_size, **options)
    if len(x):
        with torch.no_grad():
            logits_BK = logits_of(x)
            best.record(x, logits_BK, attack_loss(plan.loss, plan.targeted)(logits_BK, labels_B[best.rows]))
    if invalid := int(best.invalid_B.sum()):  # the sign of NaN is 0, so the attack would not move
        raise RjemError(
            f"the gradients of {invalid} of {len(start)} images are not finite, so they cannot be attacked; "
            "check the network (with fp16, use --precision fp32)"
        )
    return best.best


@dataclass(frozen=True)
class CleanResult:
    """Before any attack: predictions (N,), which images are attacked, and how many of their gradients vanish."""

    predictions: Tensor
    attacked: Tensor
    zero_images: int
    zero_components: float


@dataclass(frozen=True)
class RadiusResult:
    """After one radius. `success`: bool (N,), images that an attack broke or, targeted, pushed to their target; `x`:
    float (N, C, H, W), the attacked images."""

    eps: float
    success: Tensor
    x: Tensor = field(repr=False)

    def robust(self, clean: CleanResult, labels: Tensor) -> Tensor:
        """Classified correctly and not broken, bool (N,)."""
        return (clean.predictions == labels) & ~self.success

    def robust_accuracy(self, clean: CleanResult, labels: Tensor) -> Accuracy:
        """The share of all images that is robust."""
        return Accuracy(int(self.robust(clean, labels).sum()), len(labels))

    def success_rate(self, clean: CleanResult) -> Accuracy:
        """The share of the attacked images on which the attack succeeded."""
        return Accuracy(int((self.success & clean.attacked).sum()), int(clean.attacked.sum()))


def evaluate_clean(
    logits_of: Logits, plan: AttackPlan, dataset: AttackDataset, device: torch.device, batches: BatchSizer
) -> CleanResult:
    """Classify the images. Attacked are those that are classified correctly and, if targeted, not of their target's
    class. Vanishing gradients indicate masking rather than robustness (Athalye et al. 2018)."""
    loss = attack_loss(plan.loss, plan.targeted)

    def evaluate(rows: Tensor) -> tuple[Tensor, Tensor]:
        x, labels_B = to_model(dataset.images.pixels[rows].to(device)), dataset.attack_labels[rows].to(device)
        logits_BK, _, gradient = value_and_grad(logits_of, lambda logits: loss(logits, labels_B), x)
        return logits_BK.argmax(dim=1).cpu(), (gradient == 0).flatten(1).float().mean(dim=1).cpu()

    results = [batches.run(evaluate, rows) for rows in torch.arange(len(dataset)).split(batches.batch_size)]
    predictions, zero_shares = (torch.cat(parts) for parts in zip(*results))
    attacked = predictions == dataset.images.labels
    if dataset.targets is not None:
        attacked &= dataset.images.labels != dataset.targets
    zero = zero_shares[attacked]
    return CleanResult(predictions, attacked, int((zero == 1).sum()), float(zero.mean()) if len(zero) else 0.0)


def attack_dataset(
    logits_of: Logits,
    plan: AttackPlan,
    dataset: AttackDataset,
    clean: CleanResult,
    radii: Sequence[float],
    *,
    device: torch.device,
    batches: BatchSizer,
    on_progress: AttackProgress = noop,
) -> Iterator[RadiusResult]:
    """One result per radius, the smallest first. `logits_of` must be frozen. Before each restart the images that are
    still robust are packed into full batches again."""
    success = torch.zeros(len(dataset), dtype=torch.bool)
    best_x, best_loss = to_model(dataset.images.pixels), torch.full((len(dataset),), -torch.inf)
    count, rounds = int(clean.attacked.sum()), len(radii) * plan.restarts
    for number, eps in enumerate(sorted(radii)):
        best_loss.fill_(-torch.inf)  # a larger ball: search again
        for restart in range(plan.restarts):

            def attack(rows: Tensor, eps: float = eps, restart: int = restart) -> AttackResult:
                center, labels_B = to_model(dataset.images.pixels[rows].to(device)), dataset.attack_labels[rows]
                seeds_B = (dataset.seed + dataset.indices[rows]).to(device)
                from_image = plan.start == "image" and restart == 0
                start = center if from_image else random_start(center, seeds_B, eps, plan.norm, restart)
                result = run_restart(logits_of, plan, eps, start, center, labels_B.to(device))
                return AttackResult(*(part.cpu() for part in result))

            remaining = (clean.attacked & ~success).nonzero().squeeze(1)
            left = len(remaining)
            for rows in remaining.split(batches.batch_size) if left else ():
                x, succeeded, loss = batches.run(attack, rows)
                better = succeeded | (loss > best_loss[rows])
                best_x[rows[better]], best_loss[rows[better]] = x[better], loss[better]
                success[rows[succeeded]] = True
                left -= len(rows)
                done = (number * plan.restarts + restart + 1) * count - left
                robust = f"{1 - int(success.sum()) / count:.1%} robust"
                on_progress(done, rounds * count, f"eps {eps:g}, restart {restart + 1}, {robust}")
        yield RadiusResult(eps, success.clone(), best_x.clone())
