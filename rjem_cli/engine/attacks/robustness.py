"""Robust accuracy: every restart attacks every image that is still robust, at one radius after another.

An image is robust at a radius if it is classified correctly and no restart at this or a smaller radius succeeds. So
robust accuracy never rises with the radius, and an image costs nothing more after the first success. Radii and steps in
model units.

Attacks may search with a network in a faster precision. Whether they succeed is decided in fp32 (`confirm`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rjem_cli.config.scoring import AttackConfig
from rjem_cli.engine.accuracy import Accuracy
from rjem_cli.engine.attacks.apgd import apgd
from rjem_cli.engine.attacks.pgd import AttackState, attack_loss, expand_like, is_success, pgd, random_start
from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.callbacks import noop
from rjem_cli.engine.data.images import to_model
from rjem_cli.engine.gradients import LogitsFn, value_and_grad
from rjem_cli.engine.models.eval_images import AttackDataset
from rjem_cli.engine.timing import FORWARD
from rjem_cli.errors import RjemError

ROBUST_MEANS = "classified correctly, and no attack at this or a smaller radius succeeds; the box is [-1, 1]"
CONFIDENCE_MEANS = "; an attack succeeds only where the predicted class has a probability of at least {:g}"
DROP_EVERY = 5  # steps between two removals of images on which the attack has succeeded; each one is a host sync

AttackProgress = Callable[[str, int, int, str], None]  # phase, images done, images at most, state


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
    min_confidence: float = 0.0

    @classmethod
    def from_config(cls, config: AttackConfig, norm: str, targeted: bool) -> "AttackPlan":
        return cls(
            norm=norm,
            method=config.method,
            steps=config.steps,
            step_size=config.step_size,
            loss=config.loss,
            restarts=config.restarts,
            start=config.start,
            iterate=config.iterate,
            targeted=targeted,
            min_confidence=config.min_confidence,
        )

    @property
    def robust_means(self) -> str:
        """What a robust image is."""
        return ROBUST_MEANS + (CONFIDENCE_MEANS.format(self.min_confidence) if self.min_confidence else "")

    @property
    def gradient_steps(self) -> int:
        """Network passes (forward and backward) that one image costs at most, for one radius."""
        return self.steps * self.restarts

    @property
    def passes(self) -> float:
        """`gradient_steps`, and one forward pass of each restart, which checks its last iterate."""
        return self.gradient_steps + self.restarts * FORWARD


@dataclass(frozen=True)
class AttackSetup:
    """A frozen network on `device`, the images, how they are attacked, and in what batches. `logits_fn` decides what is
    classified correctly and whether an attack succeeds. `search_fn` computes the gradients: the same network, perhaps
    in a faster precision."""

    logits_fn: LogitsFn
    search_fn: LogitsFn
    plan: AttackPlan
    dataset: AttackDataset
    device: torch.device
    batches: BatchSizer


class AttackResult(NamedTuple):
    """Per image: the attacked x (B, C, H, W), whether the attack succeeded (B,), and the loss there (B,)."""

    x: Tensor
    success_B: Tensor
    loss_B: Tensor


@dataclass(frozen=True)
class CleanResult:
    """Before any attack: predictions (N,), `correct` and `attacked` images, bool (N,); how many attacked images have a
    gradient of zero, and the share of zeros among all their gradient components."""

    predictions: Tensor
    correct: Tensor
    attacked: Tensor
    zero_images: int
    zero_components: float


@dataclass(frozen=True)
class RadiusResult:
    """After one radius: where an attack succeeded, bool (N,), and the attacked images, float (N, C, H, W)."""

    eps: float
    success: Tensor
    x: Tensor

    def robust(self, clean: CleanResult) -> Tensor:
        """Classified correctly, and no attack succeeded, bool (N,)."""
        return clean.correct & ~self.success

    def robust_accuracy(self, clean: CleanResult) -> Accuracy:
        """The share of robust images among all images."""
        return Accuracy(int(self.robust(clean).sum()), len(self.success))

    def success_rate(self, clean: CleanResult) -> Accuracy:
        """The share of the attacked images on which an attack succeeded."""
        return Accuracy(int((self.success & clean.attacked).sum()), int(clean.attacked.sum()))


class BestIterate:
    """A callback of `pgd` and `apgd` that records the best iterate of each image: the first success, else the largest
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
        """Replace the best iterate of each image where this one is better."""
        success_B = is_success(logits_BK, self.labels_B[self.rows], self.plan.targeted, self.plan.min_confidence)
        previous = AttackResult(*(part[self.rows] for part in self.best))
        better = ~previous.success_B & (success_B | (loss_B > previous.loss_B))
        for best, old, new in zip(self.best, previous, (x, success_B, loss_B)):
            best[self.rows] = torch.where(expand_like(better, old), new, old)


def run_restart(
    logits_fn: LogitsFn, plan: AttackPlan, eps: float, start: Tensor, center: Tensor, labels_B: Tensor
) -> AttackResult:
    """Attack `center` (B, C, H, W) from `start`, both in [-1, 1]. labels_B: the true classes, or the wanted ones of a
    targeted plan. With iterate "best" any iterate counts, the start included; with "last" only the last one. Raises
    RjemError for gradients that are not finite."""
    best = BestIterate(start, labels_B, plan)
    options: dict[str, Any] = {"eps": eps, "steps": plan.steps, "norm": plan.norm, "loss": plan.loss}
    options |= {"targeted": plan.targeted, "start": start, "callback": best}
    if plan.method == "apgd":
        x = apgd(logits_fn, center, labels_B, **options)
    else:
        x = pgd(logits_fn, center, labels_B, step_size=plan.step_size, **options)
    if len(x):
        with torch.no_grad():
            logits_BK = logits_fn(x)
            best.record(x, logits_BK, attack_loss(plan.loss, plan.targeted)(logits_BK, labels_B[best.rows]))
    if invalid := int(best.invalid_B.sum()):  # the sign of NaN is 0, so the attack would not move
        raise RjemError(
            f"the gradients of {invalid} of {len(start)} images are not finite, so they cannot be attacked; "
            "check the network (with fp16, use --precision fp32)"
        )
    return best.best


def confirm(
    logits_fn: LogitsFn,
    plan: AttackPlan,
    eps: float,
    start: Tensor,
    center: Tensor,
    labels_B: Tensor,
    searched: AttackResult,
) -> AttackResult:
    """The result of a search with another network, with successes and losses computed by `logits_fn`. Images whose
    success it does not confirm are attacked again with `logits_fn` itself."""
    with torch.no_grad():
        logits_BK = logits_fn(searched.x)
    success_B = is_success(logits_BK, labels_B, plan.targeted, plan.min_confidence)
    result = AttackResult(searched.x, success_B, attack_loss(plan.loss, plan.targeted)(logits_BK, labels_B))
    rows = (searched.success_B & ~success_B).nonzero().squeeze(1)
    if len(rows):
        attacked_again = run_restart(logits_fn, plan, eps, start[rows], center[rows], labels_B[rows])
        for part, new_part in zip(result, attacked_again):
            part[rows] = new_part
    return result


def evaluate_clean(setup: AttackSetup) -> CleanResult:
    """Classify the images. Attacked are those that are classified correctly and, if targeted, not of their target's
    class. Vanishing gradients indicate masking rather than robustness (Athalye et al. 2018)."""
    dataset, loss = setup.dataset, attack_loss(setup.plan.loss, setup.plan.targeted)

    def evaluate(rows: Tensor) -> tuple[Tensor, Tensor]:
        x, labels_B = (part[rows].to(setup.device) for part in (dataset.images.pixels, dataset.attack_labels))
        logits_BK, _, gradient = value_and_grad(setup.logits_fn, partial(loss, labels_B=labels_B), to_model(x))
        return logits_BK.argmax(dim=1).cpu(), (gradient == 0).flatten(1).float().mean(dim=1).cpu()

    predictions, zero_shares = setup.batches.run(evaluate, torch.arange(len(dataset)))
    correct = predictions == dataset.images.labels
    attacked = correct if dataset.targets is None else correct & (dataset.images.labels != dataset.targets)
    zero = zero_shares[attacked]
    return CleanResult(predictions, correct, attacked, int((zero == 1).sum()), float(zero.mean()) if len(zero) else 0.0)


def attack_images(
    logits_fn: LogitsFn,
    plan: AttackPlan,
    eps: float,
    x: Tensor,
    labels_B: Tensor,
    seeds_B: Tensor,
    device: torch.device,
    batches: BatchSizer,
    *,
    search_fn: LogitsFn | None = None,
    on_batch: Callable[[int, int], None] = noop,
) -> AttackResult:
    """Attack the images x (B, C, H, W) in [-1, 1] with all restarts; the best one counts. Results are on the host.
    `logits_fn` decides whether the attack has succeeded; `search_fn`, by default the same, computes the gradients.

    labels_B: the true classes, or the wanted ones of a targeted plan. Random starts of image i depend on seeds_B[i] and
    the restart. Before each restart the images that are still robust are packed into full batches again. `on_batch`
    gets the images done since its last call, summed over restarts, and the number of successes so far. Raises RjemError
    for gradients that are not finite.
    """
    search_fn = search_fn or logits_fn
    nothing_B = torch.full((len(x),), -torch.inf)
    best = AttackResult(x.cpu().clone(), torch.zeros(len(x), dtype=torch.bool), nothing_B)

    def attack(rows: Tensor, restart: int) -> AttackResult:
        center, labels = x[rows].to(device), labels_B[rows].to(device)
        start = center
        if plan.start == "random" or restart > 0:
            start = random_start(center, seeds_B[rows].to(device), eps, plan.norm, restart)
        result = run_restart(search_fn, plan, eps, start, center, labels)
        if search_fn is not logits_fn:
            result = confirm(logits_fn, plan, eps, start, center, labels, result)
        return AttackResult(*(part.cpu() for part in result))

    skipped = 0  # images on which an earlier restart succeeded
    for restart in range(plan.restarts):
        remaining = (~best.success_B).nonzero().squeeze(1)
        skipped += len(x) - len(remaining)
        for rows in remaining.split(batches.batch_size) if len(remaining) else ():
            result = batches.run(partial(attack, restart=restart), rows)
            better = result.success_B | (result.loss_B > best.loss_B[rows])
            for kept, new in zip(best, result):
                kept[rows[better]] = new[better]
            on_batch(skipped + len(rows), int(best.success_B.sum()))
            skipped = 0
    return best


def attack_dataset(
    setup: AttackSetup, clean: CleanResult, radii: Sequence[float], on_progress: AttackProgress = noop
) -> Iterator[RadiusResult]:
    """One result per radius, the smallest first; a larger one attacks only the images that are still robust."""
    plan, dataset = setup.plan, setup.dataset
    success, best_x = torch.zeros(len(dataset), dtype=torch.bool), to_model(dataset.images.pixels)
    count, done = int(clean.attacked.sum()), 0
    for eps in sorted(radii):
        rows = (clean.attacked & ~success).nonzero().squeeze(1)
        successes_before = count - len(rows)
        done += successes_before * plan.restarts

        def on_batch(images: int, successes: int, eps: float = eps, successes_before: int = successes_before) -> None:
            nonlocal done
            done += images
            state = f"eps {eps:g}, {1 - (successes_before + successes) / max(1, count):.1%} robust"
            on_progress("attacking", done, count * len(radii) * plan.restarts, state)

        x, labels_B, seeds_B = to_model(dataset.images.pixels[rows]), dataset.attack_labels[rows], dataset.seeds[rows]
        result = attack_images(
            setup.logits_fn,
            plan,
            eps,
            x,
            labels_B,
            seeds_B,
            setup.device,
            setup.batches,
            search_fn=setup.search_fn,
            on_batch=on_batch,
        )
        best_x[rows], success[rows] = result.x, result.success_B
        yield RadiusResult(eps, success.clone(), best_x.clone())
