"""AutoAttack's standard version (Croce & Hein 2020) by the package pyautoattack: APGD-CE, targeted APGD-DLR, targeted
FAB and Square, one after the other on the images that are still robust.

It runs in parts of one batch. Each part is cached as soon as it is done, so an interrupted call loses one part.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from rjem_cli.config.fields import PIXEL_PER_MODEL_UNIT
from rjem_cli.engine.attacks.eval_data import AttackDataset
from rjem_cli.engine.attacks.pgd import cross_entropy
from rjem_cli.engine.attacks.robustness import AttackProgress, CleanResult, RadiusResult
from rjem_cli.engine.callbacks import Log, noop
from rjem_cli.engine.data.images import to_model
from rjem_cli.engine.gradients import Logits, value_and_grad
from rjem_cli.engine.runtime import Runtime
from rjem_cli.engine.timing import median_seconds
from rjem_cli.errors import AbsentError, ConfigError
from rjem_cli.files import locked, write_atomically
from rjem_cli.paths import attacks_dir

NORMS = {"linf": "Linf", "l2": "L2"}
MIN_CLASSES = 4  # its targeted DLR loss compares the four largest logits
MAX_TARGETS = 9  # wrong classes that its targeted attacks try
STEPS, QUERIES, CHECKS = 100, 5000, 80  # of its gradient attacks, of Square, and forward passes around them


def check_autoattack(num_classes: int) -> None:
    """Before any work. Raises AbsentError without the package, ConfigError for too few classes."""
    if importlib.util.find_spec("pyautoattack") is None:
        raise AbsentError("--standard needs the package pyautoattack; install it: pip install pyautoattack")
    if num_classes < MIN_CLASSES:
        raise ConfigError(f"--standard needs {MIN_CLASSES} classes or more, this checkpoint has {num_classes}")


@dataclass(frozen=True)
class Cost:
    """The most it can be, for the images that are attacked: passes of one image, and their seconds on this device."""

    gradient_passes: int
    forward_passes: int
    seconds: float


def passes_per_image(num_classes: int) -> tuple[int, int]:
    """(gradient passes, forward passes) of an image that stays robust; a test counts them in the package itself."""
    targets = min(MAX_TARGETS, num_classes - 1)
    gradients = (STEPS + 1) * (1 + targets) + STEPS * targets  # APGD-CE and APGD-T, FAB-T
    return gradients, QUERIES + STEPS * targets + CHECKS


def estimate_cost(
    logits_of: Logits, dataset: AttackDataset, clean: CleanResult, radii: int, device: torch.device, batch_size: int
) -> Cost:
    """If no image breaks, from the time of one pass of one batch: an upper limit."""
    attacked = int(clean.attacked.sum()) * radii
    gradients, forwards = (attacked * passes for passes in passes_per_image(len(dataset.images.class_names)))
    x = to_model(dataset.images.pixels[:batch_size].to(device))
    loss = partial(cross_entropy, labels_B=dataset.images.labels[:batch_size].to(device))

    @torch.no_grad()
    def forward() -> Tensor:
        return loss(logits_of(x))

    gradient_seconds = median_seconds(lambda: value_and_grad(logits_of, loss, x), device) / len(x)
    forward_seconds = median_seconds(forward, device) / len(x)
    return Cost(gradients, forwards, gradients * gradient_seconds + forwards * forward_seconds)


def autoattack_dataset(
    logits_of: Logits,
    dataset: AttackDataset,
    clean: CleanResult,
    radii: Sequence[float],
    norm: str,
    *,
    checkpoint_sha256: str,
    runtime: Runtime,
    batch_size: int,
    on_progress: AttackProgress = noop,
    log: Log = noop,
) -> Iterator[RadiusResult]:
    """One result per radius, the smallest first; a larger one attacks only the images that are still robust. `log` is
    told of parts that an earlier call did."""
    success = torch.zeros(len(dataset), dtype=torch.bool)
    x = to_model(dataset.images.pixels)
    folder = progress_dir(dataset, checkpoint_sha256, norm, batch_size, runtime)
    count, logged = int(clean.attacked.sum()), False
    for index, eps in enumerate(sorted(radii)):
        # parts are cut before anything is known about this radius, so that they are the same in a later call
        parts = [rows for rows in (clean.attacked & ~success).nonzero().squeeze(1).split(batch_size) if len(rows)]
        left = sum(map(len, parts)) if eps > 0 else 0
        for number, rows in enumerate(parts if eps > 0 else []):
            path = folder / f"eps-{eps!r}-part-{number:05d}.safetensors"
            with locked(path):
                result = read_part(path, rows)
                if result is not None and not logged:
                    logged = True
                    log(f"using finished parts from {folder}")
                if result is None:
                    result = attack_part(logits_of, dataset, rows, eps, norm, runtime.device)
                    write_atomically(path, safetensors.torch.save(result))
            success[rows[result["success"]]] = True
            x[rows[result["success"]]] = result["x"]
            left -= len(rows)
            robust = f"{1 - int(success.sum()) / count:.1%} robust"
            on_progress((index + 1) * count - left, len(radii) * count, f"eps {eps:g}, {robust}")
        yield RadiusResult(eps, success.clone(), x.clone())


def attack_part(
    logits_of: Logits, dataset: AttackDataset, rows: Tensor, eps: float, norm: str, device: torch.device
) -> dict[str, Tensor]:
    """`success` of these images, and the attacked `x` of those that broke. The package works in [0, 1]."""
    from pyautoattack import AutoAttack

    model: Any = lambda pixel: logits_of(2 * pixel - 1)  # noqa: E731
    attack = AutoAttack(model, norm=NORMS[norm], eps=eps * PIXEL_PER_MODEL_UNIT, device=device, seed=dataset.seed)
    targets = min(MAX_TARGETS, len(dataset.images.class_names) - 1)
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = targets
    labels = dataset.images.labels[rows].to(device)
    start = (to_model(dataset.images.pixels[rows].to(device)) + 1) / 2
    pixel, _ = attack.run_standard_evaluation(start, labels, batch_size=len(rows))
    x = (2 * pixel - 1).clamp(-1, 1)
    with torch.no_grad():
        success = logits_of(x).argmax(dim=1) != labels
    return {"rows": rows, "success": success.cpu(), "x": x[success].cpu().contiguous()}


def read_part(path: Path, rows: Tensor) -> dict[str, Tensor] | None:
    """The cached part; None if there is no valid one."""
    try:
        part = safetensors.torch.load_file(path)
        return part if torch.equal(part["rows"], rows) and {"success", "x"} <= part.keys() else None
    except (OSError, SafetensorError, KeyError):
        return None


def describe_autoattack(dataset: AttackDataset, norm: str, batch_size: int) -> dict[str, Any]:
    """Its protocol. Its random draws are per batch, so the batch size belongs to it."""
    wrong = len(dataset.images.class_names) - 1
    return {
        "method": "AutoAttack, standard version",
        "package": f"pyautoattack {importlib.metadata.version('pyautoattack')}",
        "norm": norm,
        "batch_size": batch_size,
        "target_classes": f"{min(MAX_TARGETS, wrong)} of {wrong}",
    }


def progress_dir(dataset: AttackDataset, checkpoint_sha256: str, norm: str, batch_size: int, runtime: Runtime) -> Path:
    """One folder for everything that decides the result."""
    decisive = [
        describe_autoattack(dataset, norm, batch_size),
        checkpoint_sha256,
        dataset.images.digest(),
        dataset.indices.tolist(),
        dataset.seed,
        runtime.arithmetic,
        torch.__version__,
    ]
    return attacks_dir() / hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:32]
