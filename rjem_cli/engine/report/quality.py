"""What an evaluation of samples found, as plain data and files: scores beside their whole protocol, and pictures."""

from __future__ import annotations

import hashlib
import json
import re
import time
from typing import Any

from rjem_cli import __version__
from rjem_cli.engine.data.collection import with_channels
from rjem_cli.engine.data.pictures import contact_sheet, png_bytes, side_by_side
from rjem_cli.engine.evaluation.accuracy import spread_indices
from rjem_cli.engine.quality.job import EvalJob
from rjem_cli.engine.quality.metrics import Neighbours
from rjem_cli.engine.quality.plan import BETTER, SCORES, score_name
from rjem_cli.engine.quality.reference import Reference
from rjem_cli.engine.quality.score import PerClass, Scores, Subject, kid_subset_size
from rjem_cli.engine.report.figures import class_bars
from rjem_cli.errors import ConfigError
from rjem_cli.paths import append_line, claimed_folder, empty_own_folder, expand, results_file, write_atomically

OUR_NAMES = re.compile(r"eval\.json|nearest\.png|classes\.png")
STANDARD_COUNT = 50_000  # samples of the field's FID
FEW_SAMPLES = 10_000  # below, FID is large by its number of samples more than by the samples
SHOWN, COLUMNS = 50, 5


def describe_evaluation(
    job: EvalJob, subject: Subject, scores: Scores, per_class: PerClass, seconds: float
) -> dict[str, Any]:
    """Scores by name, the protocol that they mean nothing without, and what a reader should know."""
    return {
        "rjem": __version__,
        "kind": "samples",
        **scores,
        "per_class": per_class,
        "protocol": describe_protocol(job, subject),
        "notes": notes_on(job),
        "require": {str(gate): gate.holds(scores) for gate in job.inputs.gates},
        "seconds": round(seconds, 1),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def describe_protocol(job: EvalJob, subject: Subject) -> dict[str, Any]:
    """All that the scores depend on."""
    inputs, samples = job.inputs, job.inputs.samples
    meta = samples.meta or {}
    return {
        "name": inputs.config.protocol,
        "samples": {
            "from": samples.name,
            "count": len(samples),
            "of": inputs.of,
            "shape": list(samples.image_shape),
            "pixels": "uint8",
            "sha256": samples.digest(),
            "selection": meta.get("selection", "not known"),
            "checkpoint_sha256": meta.get("checkpoint_sha256"),
            "request": meta.get("request"),
        },
        "reference": describe_reference(inputs.reference),
        "features": {**job.extractor.identity, "arithmetic": "float32", "chosen": job.choice.reason},
        "metrics": describe_metrics(job, subject),
        "device": inputs.runtime.describe(),
    }


def describe_reference(reference: Reference) -> dict[str, Any]:
    if reference.images is not None:
        images = reference.images
        return {"name": reference.name, "count": len(images), "kind": "images", "sha256": images.digest()}
    assert reference.statistics is not None
    content = reference.statistics.mu.tobytes() + reference.statistics.sigma.tobytes()
    return {
        "name": reference.name,
        "count": None,
        "kind": "statistics",
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def describe_metrics(job: EvalJob, subject: Subject) -> dict[str, Any]:
    """The settings of each metric that was computed."""
    config, count = job.inputs.config, len(job.inputs.samples)
    real_count = 0 if subject.real is None else len(subject.real)
    deficient = is_deficient(job)
    by_judge = bool(job.extractor.class_names) and job.extractor.class_names == subject.labels.class_names
    found: dict[str, dict[str, Any]] = {
        "is": {"splits": config.is_splits, "seed": config.seed},
        "fid": {"covariances": "rank-deficient" if deficient else "full rank", "features": job.extractor.dimensions},
        "kid": {
            "subsets": config.kid_subsets,
            "subset_size": kid_subset_size(config, count, real_count),
            "kernel": "cubic",
            "seed": config.seed,
        },
        "prc": {"neighbours": config.neighbours},
        "dc": {"neighbours": config.coverage_neighbours},
        "intra_fid": {"mean_over": "classes sampled"},
        "diversity": {"class_by": "judge" if by_judge else "nearest reference image"},
    }
    return {name: {"scores": scores_of(name, job), "settings": found[name]} for name in job.plan.metrics}


def scores_of(metric: str, job: EvalJob) -> dict[str, str]:
    """The names of a metric's scores, and which values are better."""
    names = {score_name(name, job.extractor.suffix): BETTER.get(name, "") for name in SCORES[metric]}
    return {name: better for name, better in names.items() if name in job.plan.scores}


def is_deficient(job: EvalJob) -> bool:
    reference = job.inputs.reference.images
    counts = [len(job.inputs.samples), *([] if reference is None else [len(reference)])]
    return min(counts) <= job.extractor.dimensions


def notes_on(job: EvalJob) -> list[str]:
    """What is left out or limits a score, a sentence each."""
    count, notes = len(job.inputs.samples), list(job.plan.notes)
    if job.extractor.note:
        notes.append(job.extractor.note)
    if (job.inputs.samples.meta or {}).get("complete") is False:
        notes.append("the samples are those of an unfinished call")
    if "fid" in job.plan.metrics:
        if is_deficient(job):
            notes.append(
                "fewer images than features: the Frechet distance is of rank-deficient covariances (--allow-few)"
            )
        elif count < FEW_SAMPLES and not job.extractor.suffix:
            notes.append(f"FID falls as samples grow in number, about c/N: with {count} compare KID, or equal counts")
        if job.inputs.config.protocol == "standard" and count != STANDARD_COUNT and not job.extractor.suffix:
            notes.append(f"the field's FID is of {STANDARD_COUNT} samples, this one of {count}")
    return notes


def write_results(job: EvalJob, subject: Subject, document: dict[str, Any]) -> None:
    """A line in the results file, and with --save a folder of eval.json and pictures. Raises RjemError where one cannot
    be written, ConfigError where the folder holds something else."""
    config = job.inputs.config
    append_line(results_file() if config.results is None else expand(config.results), json.dumps(document))
    if config.save is None:
        return
    folder = expand(config.save)
    with claimed_folder(folder, "--save", OUR_NAMES, "eval.json"):
        empty_own_folder(folder, OUR_NAMES)
        write_atomically(folder / "eval.json", json.dumps(document, indent=2).encode())
        if "share" in document["per_class"]:
            write_atomically(folder / "classes.png", class_figure(document))
        if "diversity" in job.plan.metrics and subject.real is not None:
            write_atomically(folder / "nearest.png", nearest_picture(subject, subject.neighbours))


def check_save(save: str | None, overwrite: bool) -> None:
    """Before the work. Raises ConfigError for a folder that holds something else, or results that may not go."""
    if save is None:
        return
    with claimed_folder(expand(save), "--save", OUR_NAMES, "eval.json") as earlier:
        if earlier is not None and not overwrite:
            raise ConfigError(f"--save {save} holds results already; add --overwrite, or give another folder")


def class_figure(document: dict[str, Any]) -> bytes:
    shares, real_shares = document["per_class"]["share"], document["per_class"]["share_real"]
    protocol = document["protocol"]
    class_by = protocol["metrics"]["diversity"]["settings"]["class_by"]
    title = f"{protocol['samples']['from']}, classes by {class_by}"
    return class_bars(list(shares), list(shares.values()), list(real_shares.values()), title)


def nearest_picture(subject: Subject, neighbours: Neighbours) -> bytes:
    """Samples spread over the set beside their nearest real images, then the samples that are nearest to one."""
    assert subject.reference.images is not None
    spread = spread_indices(len(subject.samples), SHOWN)
    closest = neighbours.distance.cpu().argsort()[: len(spread)]
    sheets = []
    for title, indices in (("samples", spread), ("closest samples", closest)):
        real = subject.reference.images.pixels[neighbours.nearest.cpu()[indices]]
        sheets.append((title, contact_sheet(with_channels(subject.samples.pixels[indices], 3, title), COLUMNS)))
        sheets.append(("nearest in the reference", contact_sheet(with_channels(real, 3, title), COLUMNS)))
    return png_bytes(side_by_side(sheets))
