"""What an evaluation of a checkpoint found, as plain data and pictures: scores beside their protocol, the reliability
diagram, and the energies of all kinds of images in one figure."""

from __future__ import annotations

import math
from typing import Any

from rjem_cli.config.fields import format_epsilon
from rjem_cli.engine.attacks.attack_report import describe_plan
from rjem_cli.engine.figures import energy_histograms, reliability_diagram
from rjem_cli.engine.metrics.accuracy import Accuracy, accuracy_per_class
from rjem_cli.engine.metrics.classifier import ClassifierJob, ClassifierScores
from rjem_cli.engine.metrics.ood import Outputs
from rjem_cli.engine.metrics.results import Pictures, describe_call

QUANTILES = (0.05, 0.5, 0.95)


def describe_classifier_scores(job: ClassifierJob, found: ClassifierScores, seconds: float) -> dict[str, Any]:
    """Scores by name, the protocol that they mean nothing without, and what lies behind them."""
    labels, names = job.test.images.labels, job.test.images.class_names
    return {
        **describe_call("checkpoint", found.scores, job.requirements, seconds),
        "accuracy_interval_95": Accuracy(int(found.correct.sum()), len(labels)).to_dict()["interval_95"],
        "per_class": accuracy_per_class(found.correct, labels, names),
        "robust": [
            {
                "eps": result.eps,
                "eps_text": format_epsilon(result.eps, job.plan.norm),
                "accuracy": result.robust_accuracy(found.clean).to_dict(),
                "per_class": accuracy_per_class(result.robust(found.clean), labels, names),
            }
            for result in found.robust
        ],
        "attacked": int(found.clean.attacked.sum()),
        "zero_gradient_images": found.clean.zero_images,
        "reliability": [
            {
                "images": each.images,
                "confidence": each.confidence if each.images else None,
                "accuracy": each.accuracy if each.images else None,
            }
            for each in found.bins
        ],
        "energies": {kind: describe_outputs(outputs) for kind, outputs in found.outputs.items()},
        "protocol": describe_protocol(job),
        "notes": found.notes,
    }


def describe_outputs(outputs: Outputs) -> dict[str, Any]:
    """E(x): mean and quantiles; the mean length of dE/dx; null for values that are not finite, and of no images."""
    if not len(outputs.energy):
        return {"count": 0} | dict.fromkeys(("mean", "q05", "median", "q95", "gradient_norm"))
    low, median, high = outputs.energy.double().quantile(outputs.energy.new_tensor(QUANTILES).double()).tolist()
    values = {
        "count": len(outputs.energy),
        "mean": float(outputs.energy.double().mean()),
        "q05": low,
        "median": median,
        "q95": high,
        "gradient_norm": float(outputs.gradient_norm.double().mean()),
    }
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def describe_protocol(job: ClassifierJob) -> dict[str, Any]:
    """All that the scores depend on."""
    config, checkpoint = job.config, job.checkpoint
    return {
        "checkpoint": {"path": str(checkpoint.path), "sha256": checkpoint.sha256, "step": checkpoint.info.step},
        "data": job.test.source,
        "images": len(job.test.images),
        "of": job.test.total,
        "indices": job.test.indices.tolist(),
        "attack": describe_plan(job.plan),
        "radii": list(job.radii),
        "robust_means": "classified correctly and not broken at this or a smaller radius; the box is [-1, 1]",
        "ece": {"bins": config.bins, "width": "equal"},
        "ood": {
            "sets": {kind: len(pixels) for kind, pixels in job.ood_sets.items()},
            "scores": {"log_p": "-E(x)", "max_p": "max p(y|x)", "gradient": "-|dE/dx|"},
        },
        "samples": None if job.samples is None else job.samples.meta,
        "seed": config.seed,
        "arithmetic": "float32",
        "device": job.runtime.describe(),
    }


def pictures_of(job: ClassifierJob, found: ClassifierScores) -> Pictures:
    source, ece = job.test.source, found.scores["ece"]
    energies = {kind: outputs.energy.numpy() for kind, outputs in found.outputs.items()}
    return {
        "reliability.png": lambda: reliability_diagram(found.bins, f"{source}, ECE {ece:.2%}"),
        "energies.png": lambda: energy_histograms(energies, f"E(x), {source}"),
    }
