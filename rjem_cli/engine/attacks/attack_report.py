"""One `rjem attack`: the job, its document with protocol and scores and, with --save, the attacked images.

8 bits per channel round every pixel, so distance and success are measured again on the rounded images.
"""

import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rjem_cli import __version__
from rjem_cli.config.fields import PIXEL_PER_MODEL_UNIT, format_epsilon, format_short_epsilon, parse_epsilon
from rjem_cli.config.scoring import AttackConfig
from rjem_cli.engine.accuracy import Accuracy, accuracy_per_class
from rjem_cli.engine.attacks import robustness
from rjem_cli.engine.attacks.autoattack import autoattack_dataset, check_autoattack, describe_autoattack, estimate_cost
from rjem_cli.engine.attacks.pgd import is_success, l2_norm
from rjem_cli.engine.attacks.targets import choose_targets
from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.callbacks import Log, noop
from rjem_cli.engine.data.images import to_model, to_pixels
from rjem_cli.engine.data.png import contact_sheet, png_bytes, side_by_side, write_images
from rjem_cli.engine.figures import epsilon_curve
from rjem_cli.engine.inference import Model
from rjem_cli.engine.models.eval_images import (
    AttackDataset,
    load_eval_images,
    resolve_radii,
)
from rjem_cli.engine.runtime import start_runtime
from rjem_cli.engine.timing import FORWARD, find_batch_size, time_pass
from rjem_cli.files import csv_text, empty_output_folder, make_dir, write_atomically, write_json
from rjem_cli.paths import expand

OUTPUT_FILES = re.compile(r"attack\.json|curve\.png|eps-[^/]+/(\d{6,}\.png|images\.csv|examples\.png)")
EXAMPLES, EXAMPLE_COLUMNS = 25, 5


@dataclass(frozen=True)
class AttackJob(robustness.AttackSetup):
    """Everything that is known before the first step. Radii in model units, ascending; `dataset` is a selection of the
    `total` images of `source`."""

    config: AttackConfig
    model: Model
    radii: tuple[float, ...]
    source: str
    total: int
    read_summary: str

    def estimate_seconds(self) -> float:
        """An upper limit, estimated from the time of one batch and reached if no attack succeeds. It does not count
        attacks that are repeated in fp32, because fp32 did not confirm a success."""
        if self.config.standard:
            return estimate_cost(self, robustness.evaluate_clean(self), len(self.radii)).seconds
        shape = self.dataset.images.image_shape
        batch_size = min(find_batch_size(self.logits_fn, shape, self.batches, self.device), len(self.dataset))
        batches, radii = math.ceil(len(self.dataset) / batch_size), len(self.radii)
        exact = search = time_pass(self.logits_fn, shape, batch_size, self.device)
        confirmations = 0.0
        if self.search_fn is not self.logits_fn:
            search = time_pass(self.search_fn, shape, batch_size, self.device)
            confirmations = self.plan.restarts * FORWARD
        return batches * ((1 + confirmations * radii) * exact + self.plan.passes * radii * search)

    def run(
        self, clean: robustness.CleanResult, on_progress: robustness.AttackProgress = noop, log: Log = noop
    ) -> Iterator[robustness.RadiusResult]:
        """One result per radius, the smallest first. Logs if AutoAttack uses parts of an earlier call."""
        if not self.config.standard:
            return robustness.attack_dataset(self, clean, self.radii, on_progress)
        key = [self.model.checkpoint.sha256, self.model.runtime.scoring().arithmetic]
        return autoattack_dataset(self, clean, self.radii, key, on_progress, log)


def prepare_attack(config: AttackConfig, path: Path | None, log: Log = noop) -> AttackJob:
    """Read the checkpoint and the images. `log` reports smaller batches. Raises ConfigError, AbsentError or
    DataError."""
    model = Model.load(config, path, start_runtime(config, reproducible=True))
    info, class_count = model.info, len(model.class_names)
    if config.standard:
        check_autoattack(class_count)
    norm, radii = resolve_radii(config, info)
    test = load_eval_images(config, info)
    targets = choose_targets(config, test, info.class_names)
    plan = robustness.AttackPlan.from_config(config, norm, targeted=targets is not None)
    return AttackJob(
        logits_fn=model.scoring_fn,
        search_fn=model.scoring_fn if config.standard else model.logits_fn,
        plan=plan,
        dataset=AttackDataset(test.images, test.indices, targets, config.seed),
        device=model.device,
        batches=BatchSizer(config.batch_size, log),
        config=config,
        model=model,
        radii=radii,
        source=test.source,
        total=test.total,
        read_summary=test.read_summary,
    )


class AttackReport:
    """Grows by one result per radius. With --save each is written at once, so an interrupted call leaves it behind."""

    def __init__(self, job: AttackJob, clean: robustness.CleanResult):
        self.job, self.clean, self.started = job, clean, time.perf_counter()
        self.folder = None if job.config.save is None else expand(job.config.save)
        self.document: dict[str, Any] = {
            "rjem": __version__,
            "complete": False,
            "protocol": describe_protocol(job),
            "clean": describe_clean(clean, job.dataset),
            "results": [],
        }

    def add(self, result: robustness.RadiusResult) -> None:
        """Describe the result and, with --save, write its images. Raises RjemError."""
        row = describe_result(result, self.clean, self.job.dataset, self.job.plan.norm)
        if self.folder is not None:
            folder = self.folder / folder_name(result.eps, self.job.plan.norm)
            row["files"] = write_attacked_images(folder, self.job, result, self.clean)
            write_examples(folder / "examples.png", result, self.job.dataset)
        self.document["results"].append(row)
        self.document["complete"] = len(self.document["results"]) == len(self.job.radii)
        self.document["seconds"] = round(time.perf_counter() - self.started, 1)
        self.save()

    def save(self) -> None:
        """Write attack.json and, at the end, curve.png."""
        if self.folder is not None:
            write_json(self.folder / "attack.json", self.document)
            if self.document["complete"]:
                write_atomically(self.folder / "curve.png", draw_curve(self.document))


@contextmanager
def open_report(job: AttackJob, clean: robustness.CleanResult) -> Iterator[AttackReport]:
    """An empty report; with --save, its folder for this process alone, as `empty_output_folder`."""
    report = AttackReport(job, clean)
    if report.folder is None:
        yield report
        return
    protocol = "protocol", report.document["protocol"]
    with empty_output_folder(report.folder, "--save", OUTPUT_FILES, "attack.json", protocol, job.config.overwrite):
        report.save()
        yield report


def folder_name(eps: float, norm: str) -> str:
    """`eps-8of255`, `eps-0.1`; no two radii share one."""
    short = format_short_epsilon(eps, norm)
    return f"eps-{short.replace('/', 'of') if parse_epsilon(short, 'model') == eps else repr(eps)}"


# --- the document ---


def describe_protocol(job: AttackJob) -> dict[str, Any]:
    """Everything that the scores depend on."""
    dataset, checkpoint = job.dataset, job.model.checkpoint
    return {
        "checkpoint": {"path": str(checkpoint.path), "sha256": checkpoint.sha256, "step": checkpoint.info.step},
        "attack": describe_autoattack(job) if job.config.standard else describe_plan(job.plan),
        "radii": list(job.radii),
        "robust_means": job.plan.robust_means,
        "data": job.source,
        "images": len(dataset),
        "of": job.total,
        "seed": dataset.seed,
        "indices": dataset.indices.tolist(),
        "targets": None if dataset.targets is None else dataset.targets.tolist(),
        "device": (job.model.runtime.scoring() if job.config.standard else job.model.runtime).describe(),
        "success_decided_in": "fp32",
        "notes": list(checkpoint.notes),
    }


def describe_plan(plan: robustness.AttackPlan) -> dict[str, Any]:
    default = "2.5 * eps / steps" if plan.method == "pgd" else "2 * eps, then adaptive"
    return {**asdict(plan), "step_size": plan.step_size or default}


def describe_clean(clean: robustness.CleanResult, dataset: AttackDataset) -> dict[str, Any]:
    labels, attacked = dataset.images.labels, int(clean.attacked.sum())
    return {
        "accuracy": Accuracy(int(clean.correct.sum()), len(labels)).to_dict(),
        "per_class": accuracy_per_class(clean.correct, labels, dataset.images.class_names),
        "attacked": attacked,
        "zero_gradient_images": Accuracy(clean.zero_images, attacked).to_dict(),
        "zero_gradient_components": clean.zero_components,
    }


def describe_result(
    result: robustness.RadiusResult, clean: robustness.CleanResult, dataset: AttackDataset, norm: str
) -> dict[str, Any]:
    """The success rate on the attacked images and, unless targeted, the robust accuracy of all images."""
    labels, names = dataset.images.labels, dataset.images.class_names
    document: dict[str, Any] = {
        "eps": result.eps,
        "eps_pixel_units": result.eps * PIXEL_PER_MODEL_UNIT,
        "eps_text": format_epsilon(result.eps, norm),
        "success": result.success_rate(clean).to_dict(),
    }
    if dataset.targets is None:
        document["robust_accuracy"] = result.robust_accuracy(clean).to_dict()
        document["per_class"] = accuracy_per_class(result.robust(clean), labels, names)
    else:
        document["per_class"] = accuracy_per_class(result.success[clean.attacked], labels[clean.attacked], names)
    return document


# --- the files ---


def draw_curve(document: dict[str, Any]) -> bytes:
    """The figure as PNG, from no attack to the largest radius."""
    targeted = document["protocol"]["targets"] is not None
    name, label = ("success", "share pushed to the target") if targeted else ("robust_accuracy", "robust accuracy")
    start = {"value": 0.0, "interval_95": [0.0, 0.0]} if targeted else document["clean"]["accuracy"]
    shares = [start, *(result[name] for result in document["results"])]
    radii = [0.0, *(result["eps"] for result in document["results"])]
    title = f"{document['protocol']['data']}, {document['protocol']['attack']['norm']}"
    values = [share["value"] or 0.0 for share in shares]
    return epsilon_curve(radii, values, [share["interval_95"] for share in shares], label, title)


def write_attacked_images(
    folder: Path, job: AttackJob, result: robustness.RadiusResult, clean: robustness.CleanResult
) -> dict[str, Any]:
    """Write all images, attacked or not, as <index>.png with images.csv beside them, and measure the rounded images.

    `success` is of the attacked images; `largest_distance` to the original, in model units, is over those; `over_eps`
    counts those farther than eps, which rounding can cause where eps is not a whole number of grey levels.
    """
    dataset, images, pixels = job.dataset, job.dataset.images, to_pixels(result.x)
    names = [f"{index:06d}.png" for index in dataset.indices.tolist()]

    @torch.no_grad()
    def measure(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = to_model(pixels[rows])
        logits_BK, offset = job.logits_fn(x.to(job.device)).cpu(), x - to_model(images.pixels[rows])
        success_B = is_success(logits_BK, dataset.attack_labels[rows], job.plan.targeted, job.plan.min_confidence)
        distance_B = offset.flatten(1).abs().amax(dim=1) if job.plan.norm == "linf" else l2_norm(offset).flatten()
        return logits_BK.argmax(dim=1), success_B, distance_B

    predictions, success, distance = job.batches.run(measure, torch.arange(len(dataset)))
    success &= clean.attacked
    columns: dict[str, list[Any]] = {
        "file": names,
        "index": dataset.indices.tolist(),
        "label": images.labels.tolist(),
        "class": [images.class_names[label] for label in images.labels.tolist()],
        "target": [""] * len(dataset) if dataset.targets is None else dataset.targets.tolist(),
        "predicted_clean": clean.predictions.tolist(),
        "predicted": predictions.tolist(),
        "success": success.int().tolist(),
        "distance": [f"{value:.6f}" for value in distance.tolist()],
    }
    write_images(make_dir(folder), names, pixels)
    write_atomically(folder / "images.csv", csv_text([tuple(columns), *zip(*columns.values())]))
    attacked = distance[clean.attacked]
    document: dict[str, Any] = {"folder": str(folder)}
    document["success"] = Accuracy(int(success.sum()), len(attacked)).to_dict()
    if dataset.targets is None:
        document["robust_accuracy"] = Accuracy(int((clean.correct & ~success).sum()), len(dataset)).to_dict()
    document["largest_distance"] = float(attacked.max()) if len(attacked) else 0.0
    document["over_eps"] = int((attacked > result.eps + 1e-6).sum())
    return document


def write_examples(path: Path, result: robustness.RadiusResult, dataset: AttackDataset) -> None:
    """The first images that the attack broke: before, after, and the difference, scaled to its largest value."""
    rows = result.success.nonzero().squeeze(1)[:EXAMPLES]
    if not len(rows):
        return
    after, before = result.x[rows], to_model(dataset.images.pixels[rows])
    difference = (after - before) / (after - before).abs().amax().clamp_min(1e-12)
    parts = {"image": before, "attacked": after, "difference": difference}
    sheets = [(title, contact_sheet(to_pixels(part), EXAMPLE_COLUMNS)) for title, part in parts.items()]
    write_atomically(path, png_bytes(side_by_side(sheets)))
