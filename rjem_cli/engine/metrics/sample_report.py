"""What an evaluation of samples found, as plain data and pictures: scores beside their whole protocol."""

from __future__ import annotations

import hashlib
import importlib.metadata
from typing import Any

import torch

from rjem_cli.engine.data.images import convert_channels, spread_indices
from rjem_cli.engine.data.png import contact_sheet, png_bytes, side_by_side
from rjem_cli.engine.figures import class_bars
from rjem_cli.engine.metrics.eval_inputs import EvalInputs
from rjem_cli.engine.metrics.reference import Reference
from rjem_cli.engine.metrics.registry import CATALOGUE, score_name
from rjem_cli.engine.metrics.results import Pictures, describe_call
from rjem_cli.engine.metrics.samples import EvalJob, SampleScores
from rjem_cli.engine.metrics.scores import EvalContext

STANDARD_COUNT = 50_000  # samples of the field's FID
ENOUGH_PER_FEATURE = 5  # samples a feature; with fewer a Frechet distance is large by their number
SHOWN, COLUMNS = 50, 5
UNKNOWN_SELECTION = "not known"


def describe_sample_scores(job: EvalJob, found: SampleScores, seconds: float) -> dict[str, Any]:
    """Scores by name, the protocol that they mean nothing without, and what a reader should know."""
    return {
        **describe_call("samples", found.scores, job.inputs.requirements, seconds),
        "per_class": found.per_class,
        "protocol": describe_protocol(job, found.subject),
        "notes": notes_on(job),
    }


def describe_protocol(job: EvalJob, subject: EvalContext) -> dict[str, Any]:
    """All that the scores depend on."""
    case = job.inputs.case
    samples, meta = case.samples, case.samples.meta or {}
    return {
        "name": case.config.protocol,
        "samples": {
            "from": samples.name,
            "count": len(samples),
            "of": job.inputs.of,
            "shape": list(samples.image_shape),
            "pixels": "uint8",
            "sha256": samples.digest(),
            "selection": meta.get("selection", UNKNOWN_SELECTION),
            "checkpoint_sha256": meta.get("checkpoint_sha256"),
            "request": meta.get("request"),
        },
        "reference": describe_reference(case.reference),
        "features": {
            **job.extractor.identity,
            **job.extractor.about,
            "arithmetic": "float32",
            "chosen": case.choice.reason,
        },
        "metrics": {
            name: {"scores": scores_of(name, job), "settings": settings_of(name, subject)}
            for name in job.inputs.plan.metrics
        },
        "device": job.inputs.runtime.describe(),
        "versions": {"torch": torch.__version__, "torch-fidelity": importlib.metadata.version("torch-fidelity")},
    }


def describe_reference(reference: Reference) -> dict[str, Any]:
    found: dict[str, Any] = {"name": reference.name, "count": None, "shape": None}
    if reference.images is not None:
        images = reference.images
        found |= {"count": len(images), "shape": list(images.image_shape), "sha256": images.digest()}
    if reference.statistics is not None:
        content = reference.statistics.mu.tobytes() + reference.statistics.sigma.tobytes()
        found["statistics_sha256"] = hashlib.sha256(content).hexdigest()
    return found


def settings_of(metric: str, subject: EvalContext) -> dict[str, Any]:
    settings = CATALOGUE[metric].settings(subject.case)
    return {**settings, "classes": classes_rule(subject)} if metric == "diversity" else settings


def classes_rule(subject: EvalContext) -> str:
    return "seen by the judge" if subject.seen_by_judge else "of the nearest real image"


def scores_of(metric: str, job: EvalJob) -> dict[str, dict[str, str]]:
    """The names of a metric's scores, which values are better, and what they are."""
    scores = CATALOGUE[metric].scores
    named = {
        score_name(name, job.extractor.suffix): {"better": score.better, "what": score.what}
        for name, score in scores.items()
    }
    return {name: about for name, about in named.items() if name in job.inputs.plan.scores}


def notes_on(job: EvalJob) -> list[str]:
    """What is left out or limits a score, a sentence each."""
    case, metrics = job.inputs.case, job.inputs.plan.metrics
    notes = [*job.inputs.plan.notes, *job.extractor.notes]
    if (case.samples.meta or {}).get("complete") is False:
        notes.append("the samples are those of an unfinished call")
    if case.reference.images is not None and not case.same_shape:
        notes.append("samples and reference differ in size: the network's resize is part of the difference")
    for metric in ("fid", "intra_fid"):
        if metric in metrics and CATALOGUE[metric].settings(case)["rank"] == "deficient":
            name = score_name(metric, job.extractor.suffix)
            notes.append(f"{name} is of rank-deficient covariances, fewer images than features (--allow-few)")
    sampled = [name for name, count in case.sampled_classes.items() if count]
    if case.sampled_classes and len(sampled) < len(case.labels.class_names):
        of = f"{len(sampled)} of {len(case.labels.class_names)} classes"
        notes.append(f"the samples are of {of}, the reference of all: that is part of the difference")
    if "fid" in metrics:
        notes += frechet_notes(case)
    if "kid" in metrics and case.kid_subset_size() in (len(case.samples), case.real_count):
        notes.append("each subset of the kernel distance is the whole set: its deviation is too small")
    if {"prc", "dc"} & set(metrics) and case.real_count != len(case.samples):
        notes.append(
            "precision, recall, density and coverage depend on the numbers of samples and of reference images: "
            "compare at equal ones"
        )
    return notes


def frechet_notes(case: EvalInputs) -> list[str]:
    count, notes = len(case.samples), []
    if count < ENOUGH_PER_FEATURE * case.choice.dimensions:
        notes.append(f"the Frechet distance falls as samples grow in number, about c/N: compare it at {count} samples")
    if case.config.protocol == "standard" and count != STANDARD_COUNT and not case.choice.suffix:
        notes.append(f"the field's FID is of {STANDARD_COUNT} samples, this one of {count}")
    if case.reference.statistics is not None:
        notes.append("which network and resize the statistics were made with is their makers' word")
    if case.reference.statistics is not None and case.real_count is not None:
        notes.append(f"FID is against the file's mu and sigma, the other scores against its {case.real_count} images")
    return notes


def pictures_of(job: EvalJob, found: SampleScores) -> Pictures:
    pictures: Pictures = {}
    if "share" in found.per_class:
        pictures["classes.png"] = lambda: class_figure(job, found)
    if "copies" in job.inputs.plan.metrics:
        pictures["nearest.png"] = lambda: nearest_picture(found.subject)
    return pictures


def class_figure(job: EvalJob, found: SampleScores) -> bytes:
    shares, real_shares = found.per_class["share"], found.per_class["share_real"]
    title = f"{job.inputs.case.samples.name}, classes {classes_rule(found.subject)}"
    return class_bars(list(shares), list(shares.values()), list(real_shares.values()), title)


def nearest_picture(subject: EvalContext) -> bytes:
    """Samples spread over the set beside their nearest real images, then the samples that are nearest to one."""
    samples, reference, neighbours = subject.case.samples, subject.case.reference.images, subject.neighbours
    assert reference is not None
    spread = spread_indices(len(samples), SHOWN)
    closest = neighbours.distance.cpu().argsort()[: len(spread)]
    sheets = []
    for title, indices in (("samples", spread), ("closest samples", closest)):
        real = reference.pixels[neighbours.nearest.cpu()[indices]]
        sheets.append((title, contact_sheet(convert_channels(samples.pixels[indices], 3, title), COLUMNS)))
        sheets.append(("nearest in the reference", contact_sheet(convert_channels(real, 3, title), COLUMNS)))
    return png_bytes(side_by_side(sheets))
