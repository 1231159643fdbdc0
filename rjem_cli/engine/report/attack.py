"""What an attack found, as plain data and files: the protocol, the scores with their intervals, per class."""

from __future__ import annotations

import json
import re
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rjem_cli import __version__
from rjem_cli.engine.evaluation.accuracy import Accuracy
from rjem_cli.engine.evaluation.attack import AttackSet, CleanState, EpsResult
from rjem_cli.engine.evaluation.attacked_files import write_and_measure
from rjem_cli.engine.evaluation.autoattack import describe_autoattack
from rjem_cli.engine.evaluation.job import AttackJob
from rjem_cli.engine.evaluation.search import AttackPlan
from rjem_cli.engine.report.figures import epsilon_curve
from rjem_cli.errors import ConfigError
from rjem_cli.files import claimed_folder, empty_own_folder, write_atomically
from rjem_cli.knobs import PIXEL_PER_MODEL_UNIT, describe_epsilon, parse_epsilon, short_epsilon
from rjem_cli.paths import expand

OUR_NAMES = re.compile(r"attack\.json|curve\.png|eps-[^/]+/(\d{6,}\.png|images\.csv|examples\.png)")


def folder_name(eps: float, norm: str) -> str:
    """`eps-8of255`, `eps-0.1`; no two radii share one."""
    short = short_epsilon(eps, norm)
    return f"eps-{short.replace('/', 'of') if parse_epsilon(short, 'model') == eps else repr(eps)}"


class AttackReport:
    """Grows by one result a radius. With --save each is written as it comes, so that a stop leaves those done."""

    def __init__(self, job: AttackJob, clean: CleanState):
        self.job, self.clean, self.started = job, clean, time.perf_counter()
        self.folder = None if job.config.save is None else expand(job.config.save)
        self.document: dict[str, Any] = {
            "rjem": __version__,
            "complete": False,
            "protocol": describe_protocol(job),
            "clean": describe_clean(clean, job.chosen),
            "results": [],
        }
        self.held = ExitStack()

    def __enter__(self) -> AttackReport:
        """Raises ConfigError where the folder of --save holds something else, RjemError where another process is at
        it."""
        if self.folder is not None:
            with ExitStack() as opened:
                earlier = opened.enter_context(claimed_folder(self.folder, "--save", OUR_NAMES, "attack.json"))
                clear_earlier(self.folder, earlier, self.document["protocol"], self.job.config.overwrite)
                self._save()
                self.held = opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.held.close()

    def add(self, result: EpsResult) -> None:
        row = describe_result(result, self.clean, self.job.chosen, self.job.plan.norm)
        if self.folder is not None:
            row["files"] = write_and_measure(
                self.folder / folder_name(result.eps, self.job.plan.norm),
                result,
                self.clean,
                self.job.chosen,
                self.job.logits_of,
                self.job.plan.norm,
                device=self.job.runtime.device,
                room=self.job.room,
            ).to_dict(targeted=self.job.plan.targeted)
        results = self.document["results"]
        results.append(row)
        self.document |= {
            "complete": len(results) == len(self.job.radii),
            "seconds": round(time.perf_counter() - self.started, 1),
        }
        self._save()

    def _save(self) -> None:
        if self.folder is None:
            return
        write_atomically(self.folder / "attack.json", json.dumps(self.document, indent=2).encode())
        if self.document["complete"]:
            write_atomically(self.folder / "curve.png", curve(self.document))


def clear_earlier(folder: Path, earlier: dict[str, Any] | None, protocol: dict[str, Any], overwrite: bool) -> None:
    """Empty the folder; an unfinished report of the same protocol is begun again. Raises ConfigError for another."""
    if earlier is None:
        return
    unfinished = earlier.get("protocol") == protocol and not earlier.get("complete")
    if not overwrite and not unfinished:
        raise ConfigError(f"--save {folder} holds results already; add --overwrite, or give another folder")
    empty_own_folder(folder, OUR_NAMES)


def describe_protocol(job: AttackJob) -> dict[str, Any]:
    """All that the scores depend on."""
    chosen, checkpoint, batch_size = job.chosen, job.checkpoint, job.config.batch_size
    attack = describe_autoattack(chosen, job.plan.norm, batch_size) if job.config.standard else describe_plan(job.plan)
    return {
        "checkpoint": {"path": str(checkpoint.path), "sha256": checkpoint.sha256(), "step": checkpoint.info.step},
        "attack": attack,
        "radii": list(job.radii),
        "robust_means": "classified rightly, and not broken at this or a smaller radius; the box is [-1, 1]",
        "data": job.source,
        "images": len(chosen),
        "of": job.of,
        "seed": chosen.seed,
        "indices": chosen.indices.tolist(),
        "targets": None if chosen.targets is None else chosen.targets.tolist(),
        "device": job.runtime.describe(),
    }


def describe_plan(plan: AttackPlan) -> dict[str, Any]:
    default = "2.5 * eps / steps" if plan.method == "pgd" else "2 * eps, then adaptive"
    return {**asdict(plan), "step_size": plan.step_size or default}


def describe_clean(clean: CleanState, chosen: AttackSet) -> dict[str, Any]:
    labels = chosen.images.labels
    right = clean.predictions == labels
    return {
        "accuracy": Accuracy(int(right.sum()), len(labels)).to_dict(),
        "per_class": per_class(right, labels, chosen.images.class_names),
        "attacked": int(clean.attacked.sum()),
        "zero_gradient_images": Accuracy(clean.zero_images, int(clean.attacked.sum())).to_dict(),
        "zero_gradient_components": clean.zero_components,
    }


def describe_result(result: EpsResult, clean: CleanState, chosen: AttackSet, norm: str) -> dict[str, Any]:
    """Robust accuracy of all images and the attack's success on those attacked; a targeted attack has only the
    latter."""
    labels, names = chosen.images.labels, chosen.images.class_names
    found: dict[str, Any] = {
        "eps": result.eps,
        "eps_pixel_units": result.eps * PIXEL_PER_MODEL_UNIT,
        "eps_text": describe_epsilon(result.eps, norm),
        "success": result.success(clean).to_dict(),
    }
    if chosen.targets is None:
        found["robust_accuracy"] = result.robust(clean, labels).to_dict()
        found["per_class"] = per_class(result.standing(clean, labels), labels, names)
    else:
        found["per_class"] = per_class(result.hit[clean.attacked], labels[clean.attacked], names)
    return found


def per_class(yes: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The share of `yes` (bool, (N,)) among the images of each class that has any."""
    hits = torch.bincount(labels, weights=yes.double(), minlength=len(class_names))
    counts = torch.bincount(labels, minlength=len(class_names))
    return {
        name: Accuracy(int(hits[label]), int(counts[label])).to_dict()
        for label, name in enumerate(class_names)
        if counts[label]
    }


def curve(document: dict[str, Any]) -> bytes:
    """The figure, from no attack to the largest radius so far."""
    targeted = document["protocol"]["targets"] is not None
    name, label = ("success", "share pushed to the target") if targeted else ("robust_accuracy", "robust accuracy")
    start = {"value": 0.0, "interval_95": [0.0, 0.0]} if targeted else document["clean"]["accuracy"]
    shares = [start, *(result[name] for result in document["results"])]
    radii = [0.0, *(result["eps"] for result in document["results"])]
    title = f"{document['protocol']['data']}, {document['protocol']['attack']['norm']}"
    values = [share["value"] or 0.0 for share in shares]
    return epsilon_curve(radii, values, [share["interval_95"] for share in shares], label, title)
