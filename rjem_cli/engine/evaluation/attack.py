"""A data set under attack: every restart on every image that still stands, at one radius after another.

An image counts as robust at a radius if it is classified rightly, and no attempt at that or a smaller radius breaks
it. So the curve never rises, and an image that is broken costs nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from rjem_cli.engine.chains.losses import attack_loss
from rjem_cli.engine.chains.noise import TARGET_STREAM, uniform
from rjem_cli.engine.chains.pgd import Logits, random_start
from rjem_cli.engine.data.images import ImageSet, to_model
from rjem_cli.engine.evaluation.accuracy import Accuracy
from rjem_cli.engine.evaluation.search import AttackPlan, attempt, evaluate
from rjem_cli.engine.ranks import ALONE, Ranks
from rjem_cli.engine.room import Room

Report = Callable[[int, int, str], None]  # done, total (the most there can be), what is going on


@dataclass(frozen=True)
class AttackSet:
    """The images to attack, on the host. `indices` are their fixed places in the split; `targets` the wanted classes
    of a targeted attack, or None. Draws for an image depend on `seed` and its index only."""

    images: ImageSet
    indices: Tensor
    targets: Tensor | None
    seed: int

    def __len__(self) -> int:
        return len(self.images)

    @property
    def aims(self) -> Tensor:
        """The labels that an attack works with, int64 (N,)."""
        return self.images.labels if self.targets is None else self.targets


@dataclass(frozen=True)
class CleanState:
    """Before any attack: predictions (N,), which images are attacked, and how many of their gradients vanish."""

    predictions: Tensor
    attacked: Tensor
    zero_images: int
    zero_components: float


@dataclass(frozen=True)
class EpsResult:
    """After one radius. `hit`: bool (N,), images that an attack broke (or, targeted, pushed to their target); `x`:
    float (N, C, H, W), the attacked images."""

    eps: float
    hit: Tensor
    x: Tensor = field(repr=False)

    def standing(self, clean: CleanState, labels: Tensor) -> Tensor:
        """Rightly classified and not broken, bool (N,)."""
        return (clean.predictions == labels) & ~self.hit

    def robust(self, clean: CleanState, labels: Tensor) -> Accuracy:
        """What stands, of all images."""
        return Accuracy(int(self.standing(clean, labels).sum()), len(labels))

    def success(self, clean: CleanState) -> Accuracy:
        """Hit, of the images that were attacked."""
        return Accuracy(int((self.hit & clean.attacked).sum()), int(clean.attacked.sum()))


def random_targets(labels_N: Tensor, indices_N: Tensor, num_classes: int, seed: int) -> Tensor:
    """A wrong class for each image, uniform, fixed by seed and index."""
    chance = 1 - uniform(seed + indices_N, (1,), TARGET_STREAM).squeeze(1)  # [0, 1)
    return (labels_N + 1 + (chance * (num_classes - 1)).long().clamp_max(num_classes - 2)) % num_classes


def look_at_clean(
    logits_of: Logits,
    plan: AttackPlan,
    chosen: AttackSet,
    device: torch.device,
    room: Room,
    ranks: Ranks = ALONE,
) -> CleanState:
    """Classify the images. Attacked are those that are classified rightly and, targeted, not of their target's class.
    A gradient that vanishes tells of masking rather than of robustness (Athalye et al. 2018)."""
    loss = attack_loss(plan.loss, plan.targeted)

    def look(rows: Tensor) -> tuple[Tensor, Tensor]:
        x, aims = to_model(chosen.images.pixels[rows].to(device)), chosen.aims[rows].to(device)
        logits_BK, _, gradient = evaluate(logits_of, loss, x, aims, with_gradient=True)
        return logits_BK.argmax(dim=1).cpu(), (gradient == 0).flatten(1).float().mean(dim=1).cpu()

    looks = list(ranks.spread(partial(room, look), torch.arange(len(chosen)).split(room.asked)))
    predicted, share = (torch.cat(parts) for parts in zip(*looks))
    attacked = predicted == chosen.images.labels
    if chosen.targets is not None:
        attacked &= chosen.images.labels != chosen.targets
    zero = share[attacked]
    return CleanState(predicted, attacked, int((zero == 1).sum()), float(zero.mean()) if len(zero) else 0.0)


def attack_images(
    logits_of: Logits,
    plan: AttackPlan,
    chosen: AttackSet,
    clean: CleanState,
    radii: Sequence[float],
    *,
    device: torch.device,
    room: Room,
    report: Report = lambda done, total, text: None,
    ranks: Ranks = ALONE,
) -> Iterator[EpsResult]:
    """One result a radius, the smallest first. `logits_of` must be frozen. Between restarts the images that still
    stand are packed into full batches again."""
    hit = torch.zeros(len(chosen), dtype=torch.bool)
    best_x, best_loss = to_model(chosen.images.pixels), torch.full((len(chosen),), -torch.inf)
    count, rounds = int(clean.attacked.sum()), len(radii) * plan.restarts
    for number, eps in enumerate(sorted(radii)):
        best_loss.fill_(-torch.inf)  # a larger ball: what stands is searched for again
        for restart in range(plan.restarts):
            standing = (clean.attacked & ~hit).nonzero().squeeze(1)
            left, parts = len(standing), standing.split(room.asked) if len(standing) else ()

            def search(rows: Tensor, eps: float = eps, restart: int = restart) -> tuple[Tensor, ...]:
                center, aims = to_model(chosen.images.pixels[rows].to(device)), chosen.aims[rows].to(device)
                start = start_of(plan, center, (chosen.seed + chosen.indices[rows]).to(device), eps, restart)
                return tuple(part.cpu() for part in attempt(logits_of, plan, eps, start, center, aims))

            for rows, (x, won, loss) in zip(parts, ranks.spread(partial(room, search), parts)):
                better = won | (loss > best_loss[rows])
                best_x[rows[better]], best_loss[rows[better]] = x[better], loss[better]
                hit[rows[won]] = True
                left -= len(rows)
                done = (number * plan.restarts + restart + 1) * count - left
                report(
                    done, rounds * count, f"eps {eps:g}, restart {restart + 1}, {1 - int(hit.sum()) / count:.1%} stand"
                )
        yield EpsResult(eps, hit.clone(), best_x.clone())


def start_of(plan: AttackPlan, center: Tensor, seeds_B: Tensor, eps: float, restart: int) -> Tensor:
    """Where an attempt begins: anywhere in the ball, or for the first one the image itself."""
    if plan.start == "image" and restart == 0:
        return center
    return random_start(center, seeds_B, eps, plan.norm, restart)
