"""AutoAttack's standard version (Croce & Hein 2020) by the package pyautoattack: APGD-CE, targeted APGD-DLR, targeted
FAB and Square, one after the other on the images that are still robust.

It runs in parts of one batch. Each part is cached when it is done, so an interrupted call loses one part.
"""

import importlib.metadata
import importlib.util
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from rjem_cli.config.fields import PIXEL_PER_MODEL_UNIT
from rjem_cli.engine.attacks.pgd import cross_entropy
from rjem_cli.engine.attacks.robustness import AttackProgress, AttackSetup, CleanResult, RadiusResult
from rjem_cli.engine.callbacks import Log, noop
from rjem_cli.engine.data.images import to_model
from rjem_cli.engine.gradients import value_and_grad
from rjem_cli.engine.kernels import kernels_of
from rjem_cli.engine.timing import median_seconds
from rjem_cli.errors import AbsentError, ConfigError
from rjem_cli.files import json_digest, locked, write_atomically
from rjem_cli.paths import attacks_dir

NORMS = {"linf": "Linf", "l2": "L2"}
MIN_CLASSES = 4  # the targeted DLR loss compares the four largest logits
MAX_TARGETS = 9  # wrong classes that the targeted attacks try
STEPS, QUERIES, CHECKS = 100, 5000, 80  # of the gradient attacks, of Square, and forward passes around them


def check_autoattack(num_classes: int) -> None:
    """Before any work. Raises AbsentError without the package, ConfigError for too few classes."""
    if importlib.util.find_spec("pyautoattack") is None:
        raise AbsentError("--standard needs the package pyautoattack; install it: pip install pyautoattack")
    if num_classes < MIN_CLASSES:
        raise ConfigError(f"--standard needs {MIN_CLASSES} classes or more, this checkpoint has {num_classes}")


class Cost(NamedTuple):
    """An upper limit, reached if no attack succeeds: passes of one image, and their seconds on this device."""

    gradient_passes: int
    forward_passes: int
    seconds: float


def passes_per_image(num_classes: int) -> tuple[int, int]:
    """(gradient passes, forward passes) of an image that stays robust; a test counts them in the package itself."""
    targets = min(MAX_TARGETS, num_classes - 1)
    gradients = (STEPS + 1) * (1 + targets) + STEPS * targets  # APGD-CE and APGD-T, FAB-T
    return gradients, QUERIES + STEPS * targets + CHECKS


def estimate_cost(setup: AttackSetup, clean: CleanResult, radii: int) -> Cost:
    """From the time of one pass of one batch."""
    attacked, images, size = int(clean.attacked.sum()) * radii, setup.dataset.images, setup.batches.batch_size
    gradients, forwards = (attacked * passes for passes in passes_per_image(len(images.class_names)))
    x = to_model(images.pixels[:size].to(setup.device))
    loss = partial(cross_entropy, labels_B=images.labels[:size].to(setup.device))
    gradient_seconds = median_seconds(lambda: value_and_grad(setup.logits_fn, loss, x), setup.device) / len(x)
    with torch.no_grad():
        forward_seconds = median_seconds(lambda: setup.logits_fn(x), setup.device) / len(x)
    return Cost(gradients, forwards, gradients * gradient_seconds + forwards * forward_seconds)


def autoattack_dataset(
    setup: AttackSetup,
    clean: CleanResult,
    radii: Sequence[float],
    network_key: Sequence[str],
    on_progress: AttackProgress = noop,
    log: Log = noop,
) -> Iterator[RadiusResult]:
    """One result per radius, the smallest first; a larger one attacks only the images that are still robust. Parts are
    cached for this `network_key`, which identifies the weights and their arithmetic. Logs if earlier parts are used."""
    success, x = torch.zeros(len(setup.dataset), dtype=torch.bool), to_model(setup.dataset.images.pixels)
    folder = cache_folder(setup, network_key)
    count, done, logged = int(clean.attacked.sum()), 0, False
    for eps in sorted(radii):
        # parts are cut before anything is known about this radius, so that a later call cuts the same ones
        remaining = (clean.attacked & ~success).nonzero().squeeze(1) if eps > 0 else torch.arange(0)
        done += count - len(remaining)
        for number, rows in enumerate(torch.split(remaining, setup.batches.batch_size) if len(remaining) else ()):
            path = folder / f"eps-{eps!r}-part-{number:05d}.safetensors"
            with locked(path):
                part = read_part(path, rows)
                if part is not None and not logged:
                    logged = True
                    log(f"using finished parts from {folder}")
                if part is None:
                    part = attack_part(setup, rows, eps)
                    write_atomically(path, safetensors.torch.save(part))
            fooled = rows[part["success"]]
            success[fooled], x[fooled] = True, part["x"]
            done += len(rows)
            state = f"eps {eps:g}, {1 - int(success.sum()) / count:.1%} robust"
            on_progress("attacking", done, count * len(radii), state)
        yield RadiusResult(eps, success.clone(), x.clone())


def attack_part(setup: AttackSetup, rows: Tensor, eps: float) -> dict[str, Tensor]:
    """`success` of these images, and the attacked `x` where it is true. The package works in [0, 1]."""
    from pyautoattack import AutoAttack

    images, device = setup.dataset.images, setup.device
    attack = AutoAttack(
        lambda pixel: setup.logits_fn(2 * pixel - 1),
        norm=NORMS[setup.plan.norm],
        eps=eps * PIXEL_PER_MODEL_UNIT,
        device=device,
        seed=setup.dataset.seed,
    )
    targets = min(MAX_TARGETS, len(images.class_names) - 1)
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = targets
    labels = images.labels[rows].to(device)
    start = (to_model(images.pixels[rows].to(device)) + 1) / 2
    with kernels_of(setup.logits_fn).active():
        pixel, _ = attack.run_standard_evaluation(start, labels, batch_size=len(rows))
    x = (2 * pixel - 1).clamp(-1, 1)
    with torch.no_grad():
        success = setup.logits_fn(x).argmax(dim=1) != labels
    return {"rows": rows, "success": success.cpu(), "x": x[success].cpu().contiguous()}


def read_part(path: Path, rows: Tensor) -> dict[str, Tensor] | None:
    """The cached part, or None if the file is missing or invalid."""
    try:
        part = safetensors.torch.load_file(path)
        return part if torch.equal(part["rows"], rows) and {"success", "x"} <= part.keys() else None
    except (OSError, SafetensorError, KeyError):
        return None


def describe_autoattack(setup: AttackSetup) -> dict[str, Any]:
    """The protocol. Random draws are per batch, so it includes the batch size."""
    wrong = len(setup.dataset.images.class_names) - 1
    return {
        "method": "AutoAttack, standard version",
        "package": f"pyautoattack {importlib.metadata.version('pyautoattack')}",
        "norm": setup.plan.norm,
        "batch_size": setup.batches.batch_size,
        "target_classes": f"{min(MAX_TARGETS, wrong)} of {wrong}",
    }


def cache_folder(setup: AttackSetup, network_key: Sequence[str]) -> Path:
    """One folder for everything that the results depend on."""
    dataset = setup.dataset
    data_key = [dataset.images.digest(), dataset.indices.tolist(), dataset.seed]
    key = [describe_autoattack(setup), *network_key, *data_key, torch.__version__]
    return attacks_dir() / json_digest(key)[:32]
