"""What an attack found, as plain data: the protocol, the scores with their intervals, per class."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from rjem_cli import __version__
from rjem_cli.engine.evaluation.attack import AttackSet, CleanState, EpsResult
from rjem_cli.engine.evaluation.robustness import Accuracy
from rjem_cli.engine.evaluation.search import AttackPlan
from rjem_cli.engine.model.checkpoint import Checkpoint
from rjem_cli.engine.runtime import Runtime
from rjem_cli.knobs import PIXEL_PER_MODEL_UNIT, describe_epsilon


def score(found: Accuracy) -> dict[str, Any]:
    """A share with its 95 % interval; null where there was nothing to count."""
    low, high = found.interval()
    value = found.value if found.count else None
    return {"value": value, "interval_95": [round(low, 5), round(high, 5)], "hits": found.correct, "of": found.count}


def describe_protocol(
    attack: AttackPlan | str, chosen: AttackSet, source: str, of: int, checkpoint: Checkpoint, runtime: Runtime
) -> dict[str, Any]:
    """All that the scores depend on. `attack` is our plan, or the name of AutoAttack's."""
    return {
        "rjem": __version__,
        "checkpoint": {"path": str(checkpoint.path), "sha256": checkpoint.sha256(), "step": checkpoint.info.step},
        "attack": attack if isinstance(attack, str) else describe_plan(attack),
        "robust_means": "classified rightly, and not broken at this or a smaller radius; the box is [-1, 1]",
        "data": source,
        "images": len(chosen),
        "of": of,
        "seed": chosen.seed,
        "indices": chosen.indices.tolist(),
        "targets": None if chosen.targets is None else chosen.targets.tolist(),
        "device": runtime.describe(),
    }


def describe_plan(plan: AttackPlan) -> dict[str, Any]:
    default = "2.5 * eps / steps" if plan.method == "pgd" else "2 * eps, then adaptive"
    return {**asdict(plan), "step_size": plan.step_size or default}


def describe_clean(clean: CleanState, chosen: AttackSet) -> dict[str, Any]:
    labels = chosen.images.labels
    right = clean.predictions == labels
    return {
        "accuracy": score(Accuracy(int(right.sum()), len(labels))),
        "per_class": per_class(right, labels, chosen.images.class_names),
        "attacked": int(clean.attacked.sum()),
        "zero_gradient_images": score(Accuracy(clean.zero_images, int(clean.attacked.sum()))),
        "zero_gradient_components": clean.zero_components,
    }


def describe_result(result: EpsResult, clean: CleanState, chosen: AttackSet, norm: str) -> dict[str, Any]:
    """Robust accuracy of all images and the attack's success on those attacked; a targeted attack has only the
    latter."""
    labels, names = chosen.images.labels, chosen.images.class_names
    standing = (clean.predictions == labels) & ~result.hit
    found: dict[str, Any] = {
        "eps": result.eps,
        "eps_pixel_units": result.eps * PIXEL_PER_MODEL_UNIT,
        "eps_text": describe_epsilon(result.eps),
        "norm": norm,
        "success": score(result.success(clean)),
    }
    if chosen.targets is None:
        found["robust_accuracy"] = score(result.robust(clean, labels))
        found["per_class"] = per_class(standing, labels, names)
    else:
        found["per_class"] = per_class(result.hit[clean.attacked], labels[clean.attacked], names)
    return found


def per_class(yes: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The share of `yes` (bool, (N,)) among the images of each class that has any."""
    hits = torch.bincount(labels, weights=yes.double(), minlength=len(class_names))
    counts = torch.bincount(labels, minlength=len(class_names))
    return {
        name: score(Accuracy(int(hits[label]), int(counts[label])))
        for label, name in enumerate(class_names)
        if counts[label]
    }
