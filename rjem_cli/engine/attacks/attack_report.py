"""The result of an attack: a document with protocol and scores, and with --save the attacked images.

8 bits per channel round every pixel, so distance and success are measured again from the written files.
"""

from __future__ import annotations

import json
import re
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rjem_cli import __version__
from rjem_cli.config.fields import PIXEL_PER_MODEL_UNIT, format_epsilon, format_short_epsilon, parse_epsilon
from rjem_cli.engine.attacks.attack_job import AttackJob
from rjem_cli.engine.attacks.autoattack import describe_autoattack
from rjem_cli.engine.attacks.eval_data import AttackDataset
from rjem_cli.engine.attacks.pgd import is_success, l2_norm
from rjem_cli.engine.attacks.robustness import AttackPlan, CleanResult, RadiusResult
from rjem_cli.engine.data.images import to_model, to_pixels
from rjem_cli.engine.data.png import contact_sheet, from_image, png_bytes, side_by_side, write_images
from rjem_cli.engine.figures import epsilon_curve
from rjem_cli.engine.metrics.accuracy import Accuracy
from rjem_cli.errors import ConfigError
from rjem_cli.files import append_rows, claimed_folder, empty_own_folder, make_dir, write_atomically
from rjem_cli.paths import expand

OUR_NAMES = re.compile(r"attack\.json|curve\.png|eps-[^/]+/(\d{6,}\.png|images\.csv|examples\.png)")
EXAMPLES, EXAMPLE_COLUMNS = 25, 5
CSV_COLUMNS = ("file", "index", "label", "class", "target", "predicted_clean", "predicted", "success", "distance")


class AttackReport:
    """Grows by one result per radius. With --save each is written as it comes, so an interrupted call leaves those."""

    def __init__(self, job: AttackJob, clean: CleanResult):
        self.job, self.clean, self.started = job, clean, time.perf_counter()
        self.folder = None if job.config.save is None else expand(job.config.save)
        self.document: dict[str, Any] = {
            "rjem": __version__,
            "complete": False,
            "protocol": describe_protocol(job),
            "clean": describe_clean(clean, job.dataset),
            "results": [],
        }
        self.stack = ExitStack()

    def __enter__(self) -> AttackReport:
        """Raises ConfigError if the folder of --save holds something else, RjemError if another process uses it."""
        if self.folder is not None:
            with ExitStack() as stack:
                earlier = stack.enter_context(claimed_folder(self.folder, "--save", OUR_NAMES, "attack.json"))
                clear_earlier(self.folder, earlier, self.document["protocol"], self.job.config.overwrite)
                self._save()
                self.stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def add(self, result: RadiusResult) -> None:
        """Describe the result, and write its images. Raises RjemError."""
        row = describe_result(result, self.clean, self.job.dataset, self.job.plan.norm)
        if self.folder is not None:
            folder = self.folder / folder_name(result.eps, self.job.plan.norm)
            row["files"] = write_attacked_images(folder, self.job, result, self.clean)
            write_examples(folder / "examples.png", result, self.job.dataset)
        self.document["results"].append(row)
        self.document["complete"] = len(self.document["results"]) == len(self.job.radii)
        self.document["seconds"] = round(time.perf_counter() - self.started, 1)
        self._save()

    def _save(self) -> None:
        if self.folder is None:
            return
        write_atomically(self.folder / "attack.json", json.dumps(self.document, indent=2).encode())
        if self.document["complete"]:
            write_atomically(self.folder / "curve.png", draw_curve(self.document))


def folder_name(eps: float, norm: str) -> str:
    """`eps-8of255`, `eps-0.1`; no two radii share one."""
    short = format_short_epsilon(eps, norm)
    return f"eps-{short.replace('/', 'of') if parse_epsilon(short, 'model') == eps else repr(eps)}"


def clear_earlier(folder: Path, earlier: dict[str, Any] | None, protocol: dict[str, Any], overwrite: bool) -> None:
    """Empty the folder; an unfinished report of the same protocol is replaced. Raises ConfigError for another."""
    if earlier is None:
        return
    unfinished = earlier.get("protocol") == protocol and not earlier.get("complete")
    if not overwrite and not unfinished:
        raise ConfigError(f"--save {folder} already has results; add --overwrite, or choose another folder")
    empty_own_folder(folder, OUR_NAMES)


def describe_protocol(job: AttackJob) -> dict[str, Any]:
    """Everything that the scores depend on."""
    dataset, checkpoint = job.dataset, job.checkpoint
    if job.config.standard:
        attack = describe_autoattack(dataset, job.plan.norm, job.config.batch_size)
    else:
        attack = describe_plan(job.plan)
    return {
        "checkpoint": {"path": str(checkpoint.path), "sha256": checkpoint.sha256, "step": checkpoint.info.step},
        "attack": attack,
        "radii": list(job.radii),
        "robust_means": "classified correctly and not broken at this or a smaller radius; the box is [-1, 1]",
        "data": job.source,
        "images": len(dataset),
        "of": job.total,
        "seed": dataset.seed,
        "indices": dataset.indices.tolist(),
        "targets": None if dataset.targets is None else dataset.targets.tolist(),
        "device": job.runtime.describe(),
    }


def describe_plan(plan: AttackPlan) -> dict[str, Any]:
    default = "2.5 * eps / steps" if plan.method == "pgd" else "2 * eps, then adaptive"
    return {**asdict(plan), "step_size": plan.step_size or default}


def describe_clean(clean: CleanResult, dataset: AttackDataset) -> dict[str, Any]:
    labels = dataset.images.labels
    correct = clean.predictions == labels
    return {
        "accuracy": Accuracy(int(correct.sum()), len(labels)).to_dict(),
        "per_class": accuracy_per_class(correct, labels, dataset.images.class_names),
        "attacked": int(clean.attacked.sum()),
        "zero_gradient_images": Accuracy(clean.zero_images, int(clean.attacked.sum())).to_dict(),
        "zero_gradient_components": clean.zero_components,
    }


def describe_result(result: RadiusResult, clean: CleanResult, dataset: AttackDataset, norm: str) -> dict[str, Any]:
    """The success rate on the attacked images and, unless targeted, the robust accuracy of all images."""
    labels, names = dataset.images.labels, dataset.images.class_names
    document: dict[str, Any] = {
        "eps": result.eps,
        "eps_pixel_units": result.eps * PIXEL_PER_MODEL_UNIT,
        "eps_text": format_epsilon(result.eps, norm),
        "success": result.success_rate(clean).to_dict(),
    }
    if dataset.targets is None:
        document["robust_accuracy"] = result.robust_accuracy(clean, labels).to_dict()
        document["per_class"] = accuracy_per_class(result.robust(clean, labels), labels, names)
    else:
        document["per_class"] = accuracy_per_class(result.success[clean.attacked], labels[clean.attacked], names)
    return document


def accuracy_per_class(correct: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The share of `correct` (bool, (N,)) among the images of each class that has any."""
    successes = torch.bincount(labels, weights=correct.double(), minlength=len(class_names))
    counts = torch.bincount(labels, minlength=len(class_names))
    return {
        name: Accuracy(int(successes[label]), int(counts[label])).to_dict()
        for label, name in enumerate(class_names)
        if counts[label]
    }


def draw_curve(document: dict[str, Any]) -> bytes:
    """The figure, from no attack to the largest radius so far."""
    targeted = document["protocol"]["targets"] is not None
    name, label = ("success", "share pushed to the target") if targeted else ("robust_accuracy", "robust accuracy")
    start = {"value": 0.0, "interval_95": [0.0, 0.0]} if targeted else document["clean"]["accuracy"]
    shares = [start, *(result[name] for result in document["results"])]
    radii = [0.0, *(result["eps"] for result in document["results"])]
    title = f"{document['protocol']['data']}, {document['protocol']['attack']['norm']}"
    values = [share["value"] or 0.0 for share in shares]
    return epsilon_curve(radii, values, [share["interval_95"] for share in shares], label, title)


def write_attacked_images(folder: Path, job: AttackJob, result: RadiusResult, clean: CleanResult) -> dict[str, Any]:
    """Write all images, attacked or not, as <index>.png with images.csv beside them; read them back and measure.

    `success` is of the attacked images; `largest_distance` to the original in model units, over those; `over_eps`
    counts those farther than eps, which rounding can cause where eps is not a whole number of grey levels.
    """
    make_dir(folder)
    dataset, targeted = job.dataset, job.dataset.targets is not None
    names = [f"{index:06d}.png" for index in dataset.indices.tolist()]
    append_rows(folder / "images.csv", [CSV_COLUMNS])
    successes, corrects, distances = [], [], []

    @torch.no_grad()
    def classify(x: Tensor) -> tuple[Tensor]:
        return (job.logits_of(x.to(job.runtime.device)).cpu(),)

    for rows in torch.arange(len(dataset)).split(job.batches.batch_size):
        write_images(folder, [names[row] for row in rows], to_pixels(result.x[rows]))
        x = to_model(torch.stack([read_pixels(folder / names[row]) for row in rows]))
        (logits_BK,) = job.batches.run(classify, x)
        predicted = logits_BK.argmax(dim=1)
        success = is_success(logits_BK, dataset.attack_labels[rows], targeted) & clean.attacked[rows]
        distance = measure_distance(x - to_model(dataset.images.pixels[rows]), job.plan.norm)
        append_rows(folder / "images.csv", csv_rows(dataset, clean, rows, names, predicted, success, distance))
        successes.append(success)
        corrects.append(predicted == dataset.images.labels[rows])
        distances.append(distance)
    attacked_distances, attacked = torch.cat(distances)[clean.attacked], int(clean.attacked.sum())
    document: dict[str, Any] = {
        "folder": str(folder),
        "success": Accuracy(int(torch.cat(successes).sum()), attacked).to_dict(),
    }
    if not targeted:
        document["robust_accuracy"] = Accuracy(int(torch.cat(corrects).sum()), len(dataset)).to_dict()
    document["largest_distance"] = float(attacked_distances.max()) if len(attacked_distances) else 0.0
    document["over_eps"] = int((attacked_distances > result.eps + 1e-6).sum())
    return document


def write_examples(path: Path, result: RadiusResult, dataset: AttackDataset) -> None:
    """The first images that the attack broke: before, after, and the difference, scaled to its largest value."""
    rows = result.success.nonzero().squeeze(1)[:EXAMPLES]
    if not len(rows):
        return
    after, before = result.x[rows], to_model(dataset.images.pixels[rows])
    difference = (after - before) / (after - before).abs().amax().clamp_min(1e-12)
    parts = {"image": before, "attacked": after, "difference": difference}
    sheets = [(title, contact_sheet(to_pixels(part), EXAMPLE_COLUMNS)) for title, part in parts.items()]
    write_atomically(path, png_bytes(side_by_side(sheets)))


def measure_distance(offset: Tensor, norm: str) -> Tensor:
    """(B,), model units."""
    return offset.flatten(1).abs().amax(dim=1) if norm == "linf" else l2_norm(offset).flatten()


def read_pixels(path: Path) -> Tensor:
    with Image.open(path) as image:
        return from_image(image)


def csv_rows(
    dataset: AttackDataset,
    clean: CleanResult,
    rows: Tensor,
    names: list[str],
    predicted: Tensor,
    success: Tensor,
    distance: Tensor,
) -> list[tuple[object, ...]]:
    labels, targets = dataset.images.labels, dataset.targets
    return [
        (
            names[row],
            int(dataset.indices[row]),
            int(labels[row]),
            dataset.images.class_names[int(labels[row])],
            "" if targets is None else int(targets[row]),
            int(clean.predictions[row]),
            int(predicted[index]),
            int(success[index]),
            f"{float(distance[index]):.6f}",
        )
        for index, row in enumerate(rows.tolist())
    ]
