"""What an evaluation of a checkpoint found, as plain data and pictures: scores beside their protocol, the reliability
diagram, and the energies of all kinds of images in one figure."""

from __future__ import annotations

import math
from typing import Any

from rjem_cli.engine.evaluation.accuracy import Accuracy
from rjem_cli.engine.evaluation.checkpoint import CheckpointJob, CheckpointScores
from rjem_cli.engine.evaluation.ood import Looks
from rjem_cli.engine.report.attack import describe_plan, per_class
from rjem_cli.engine.report.evaluation import Pictures, describe_call
from rjem_cli.engine.report.figures import energy_histograms, reliability_diagram
from rjem_cli.knobs import describe_epsilon

QUANTILES = (0.05, 0.5, 0.95)


def describe_checkpoint_scores(job: CheckpointJob, found: CheckpointScores, seconds: float) -> dict[str, Any]:
    """Scores by name, the protocol that they mean nothing without, and what lies behind them."""
    labels, names = job.found.images.labels, job.found.images.class_names
    return {
        **describe_call("checkpoint", found.scores, job.gates, seconds),
        "accuracy_interval_95": Accuracy(int(found.right.sum()), len(labels)).to_dict()["interval_95"],
        "per_class": per_class(found.right, labels, names),
        "robust": [
            {
                "eps": result.eps,
                "eps_text": describe_epsilon(result.eps, job.plan.norm),
                "accuracy": Accuracy(int(standing.sum()), len(labels)).to_dict(),
                "per_class": per_class(standing, labels, names),
            }
            for result, standing in found.robust
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
        "energies": {kind: describe_looks(looks) for kind, looks in found.looks.items()},
        "protocol": describe_protocol(job),
        "notes": found.notes,
    }


def describe_looks(looks: Looks) -> dict[str, Any]:
    """E(x): mean and quantiles; the mean length of dE/dx; null for values that are not finite, and of no images."""
    if not len(looks.energy):
        return {"count": 0} | dict.fromkeys(("mean", "q05", "median", "q95", "gradient_norm"))
    low, median, high = looks.energy.double().quantile(looks.energy.new_tensor(QUANTILES).double()).tolist()
    values = {
        "count": len(looks.energy),
        "mean": float(looks.energy.double().mean()),
        "q05": low,
        "median": median,
        "q95": high,
        "gradient_norm": float(looks.gradient_norm.double().mean()),
    }
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def describe_protocol(job: CheckpointJob) -> dict[str, Any]:
    """All that the scores depend on."""
    config, checkpoint = job.config, job.checkpoint
    return {
        "checkpoint": {"path": str(checkpoint.path), "sha256": checkpoint.sha256(), "step": checkpoint.info.step},
        "data": job.found.source,
        "images": len(job.found.images),
        "of": job.found.of,
        "indices": job.found.indices.tolist(),
        "attack": describe_plan(job.plan),
        "radii": list(job.radii),
        "robust_means": "classified rightly, and not broken at this or a smaller radius; the box is [-1, 1]",
        "ece": {"bins": config.bins, "width": "equal"},
        "ood": {
            "sets": {kind: len(pixels) for kind, pixels in job.others.items()},
            "scores": {"log_p": "-E(x)", "max_p": "max p(y|x)", "gradient": "-|dE/dx|"},
        },
        "samples": None if job.sampler is None else job.sampler.meta,
        "seed": config.seed,
        "arithmetic": "float32",
        "device": job.runtime.describe(),
    }


def pictures_of(job: CheckpointJob, found: CheckpointScores) -> Pictures:
    source, ece = job.found.source, found.scores["ece"]
    energies = {kind: looks.energy.numpy() for kind, looks in found.looks.items()}
    return {
        "reliability.png": lambda: reliability_diagram(found.bins, f"{source}, ECE {ece:.2%}"),
        "energies.png": lambda: energy_histograms(energies, f"E(x), {source}"),
    }
