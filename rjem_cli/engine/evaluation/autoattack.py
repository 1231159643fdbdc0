"""AutoAttack's standard version (Croce & Hein 2020) by the package pyautoattack: APGD-CE, targeted APGD-DLR, targeted
FAB and Square, one after the other on what still stands.

It runs in parts of one batch, and each part is kept as a file as soon as it is done: a stop loses one part.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from rjem_cli.engine.chains.losses import cross_entropy
from rjem_cli.engine.chains.pgd import Logits
from rjem_cli.engine.data.images import to_model
from rjem_cli.engine.evaluation.attack import AttackSet, CleanState, EpsResult, Report
from rjem_cli.engine.evaluation.search import evaluate
from rjem_cli.engine.runtime import Runtime
from rjem_cli.engine.timing import usual_seconds
from rjem_cli.errors import AbsentError, ConfigError
from rjem_cli.files import locked, write_atomically
from rjem_cli.knobs import PIXEL_PER_MODEL_UNIT
from rjem_cli.paths import home

NORMS = {"linf": "Linf", "l2": "L2"}
LEAST_CLASSES = 4  # its targeted DLR loss looks at the four largest logits
TARGETS = 9  # wrong classes that its targeted attacks try at most
STEPS, QUERIES, CHECKS = 100, 5000, 80  # of its gradient attacks, of Square, and forward passes around them


def check_autoattack(num_classes: int) -> None:
    """Before any work. Raises AbsentError without the package, ConfigError for too few classes."""
    if importlib.util.find_spec("pyautoattack") is None:
        raise AbsentError("--standard needs the package pyautoattack; install it: pip install pyautoattack")
    if num_classes < LEAST_CLASSES:
        raise ConfigError(f"--standard needs {LEAST_CLASSES} classes or more, this checkpoint has {num_classes}")


@dataclass(frozen=True)
class Cost:
    """At most, for the images that are attacked: passes of one image, and the seconds they would take here."""

    gradient_passes: int
    forward_passes: int
    seconds: float


def passes_per_image(num_classes: int) -> tuple[int, int]:
    """(gradient passes, forward passes) of an image that withstands all; a test counts them in the package itself."""
    targets = min(TARGETS, num_classes - 1)
    gradients = (STEPS + 1) * (1 + targets) + STEPS * targets  # APGD-CE and APGD-T, FAB-T
    return gradients, QUERIES + STEPS * targets + CHECKS


def cost_of(
    logits_of: Logits, chosen: AttackSet, clean: CleanState, radii: int, runtime: Runtime, batch_size: int
) -> Cost:
    """As if no image broke, from the time of one pass of one batch: the most it can take, not what it will. The ranks
    share the time."""
    device = runtime.device
    attacked = int(clean.attacked.sum()) * radii
    gradients, forwards = (attacked * passes for passes in passes_per_image(len(chosen.images.class_names)))
    x = to_model(chosen.images.pixels[:batch_size].to(device))
    labels = chosen.images.labels[:batch_size].to(device)
    gradient, forward = (
        usual_seconds(partial(evaluate, logits_of, cross_entropy, x, labels, with_gradient), device) / len(x)
        for with_gradient in (True, False)
    )
    return Cost(gradients, forwards, (gradients * gradient + forwards * forward) / runtime.ranks.world)


def autoattack_images(
    logits_of: Logits,
    chosen: AttackSet,
    clean: CleanState,
    radii: list[float],
    norm: str,
    *,
    checkpoint_sha256: str,
    runtime: Runtime,
    batch_size: int,
    report: Report,
    say: Callable[[str], None],
) -> Iterator[EpsResult]:
    """One result a radius, the smallest first; at a larger one only what still stands is attacked. `say` hears of
    parts that an earlier call has done."""
    hit = torch.zeros(len(chosen), dtype=torch.bool)
    x = to_model(chosen.images.pixels)
    folder = progress_dir(chosen, checkpoint_sha256, norm, batch_size, runtime)
    count, told = int(clean.attacked.sum()), False
    for place, eps in enumerate(sorted(radii)):
        # parts are cut before anything is known about this radius, so that they are the same after a stop
        parts = list((clean.attacked & ~hit).nonzero().squeeze(1).split(batch_size))
        parts = [rows for rows in parts if len(rows) and eps > 0]
        left = sum(map(len, parts))

        def attack(number: int, eps: float = eps, parts: list[Tensor] = parts) -> tuple[Tensor, ...]:
            path, rows = folder / f"eps-{eps!r}-part-{number:05d}.safetensors", parts[number]
            with locked(path):
                found = read_part(path, rows)
                was_done = torch.tensor(found is not None)
                if found is None:
                    found = attack_part(logits_of, chosen, rows, eps, norm, runtime.device)
                    write_atomically(path, safetensors.torch.save(found))
            return found["hit"], found["x"], was_done

        for rows, (won, won_x, was_done) in zip(parts, runtime.ranks.spread(attack, range(len(parts)))):
            if was_done and not told:
                told = True
                say(f"parts that are done already are taken from {folder}")
            hit[rows[won]] = True
            x[rows[won]] = won_x
            left -= len(rows)
            report(
                (place + 1) * count - left, len(radii) * count, f"eps {eps:g}, {1 - int(hit.sum()) / count:.1%} stand"
            )
        yield EpsResult(eps, hit.clone(), x.clone())


def attack_part(
    logits_of: Logits, chosen: AttackSet, rows: Tensor, eps: float, norm: str, device: torch.device
) -> dict[str, Tensor]:
    """Which of these images break, bool, and how those look then. The package thinks in [0, 1]."""
    from pyautoattack import AutoAttack

    model: Any = lambda pixel: logits_of(2 * pixel - 1)  # noqa: E731
    attack = AutoAttack(model, norm=NORMS[norm], eps=eps * PIXEL_PER_MODEL_UNIT, device=device, seed=chosen.seed)
    targets = min(TARGETS, len(chosen.images.class_names) - 1)
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = targets
    labels = chosen.images.labels[rows].to(device)
    start = (to_model(chosen.images.pixels[rows].to(device)) + 1) / 2
    pixel, _ = attack.run_standard_evaluation(start, labels, batch_size=len(rows))
    x = (2 * pixel - 1).clamp(-1, 1)
    with torch.no_grad():
        won = logits_of(x).argmax(dim=1) != labels
    return {"rows": rows, "hit": won.cpu(), "x": x[won].cpu().contiguous()}


def read_part(path: Path, rows: Tensor) -> dict[str, Tensor] | None:
    """What an earlier call kept of this part; None if nothing, or nothing whole."""
    try:
        found = safetensors.torch.load_file(path)
        return found if torch.equal(found["rows"], rows) else None
    except (OSError, SafetensorError, KeyError):
        return None


def describe_autoattack(chosen: AttackSet, norm: str, batch_size: int) -> dict[str, Any]:
    """Its protocol. Its draws are by batch, so the batch size belongs to it."""
    wrong = len(chosen.images.class_names) - 1
    return {
        "method": "AutoAttack, standard version",
        "package": f"pyautoattack {importlib.metadata.version('pyautoattack')}",
        "norm": norm,
        "batch_size": batch_size,
        "target_classes": f"{min(TARGETS, wrong)} of {wrong}",
    }


def progress_dir(chosen: AttackSet, checkpoint_sha256: str, norm: str, batch_size: int, runtime: Runtime) -> Path:
    """One folder for all that decides the result."""
    decisive = [
        describe_autoattack(chosen, norm, batch_size),
        checkpoint_sha256,
        chosen.images.digest(),
        chosen.indices.tolist(),
        chosen.seed,
        runtime.arithmetic,
        torch.__version__,
    ]
    return home() / "attacks" / hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:32]
