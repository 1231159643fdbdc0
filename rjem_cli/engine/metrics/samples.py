"""Scoring samples: plan (no network is loaded), prepare (the network for features), evaluate, describe."""

import hashlib
import importlib.metadata
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import torch

from rjem_cli.config.common import STREAM
from rjem_cli.config.scoring import EvalConfig
from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.callbacks import Log, OnProgress, noop
from rjem_cli.engine.data.collection import ImageCollection, merge_collections, read_collection, read_stream
from rjem_cli.engine.data.images import convert_channels, spread_indices
from rjem_cli.engine.data.png import contact_sheet, png_bytes, side_by_side
from rjem_cli.engine.figures import class_bars
from rjem_cli.engine.metrics import judge, registry, results
from rjem_cli.engine.metrics.eval_inputs import EvalContext, EvalInputs
from rjem_cli.engine.metrics.extractors import BATCH_SIZE, GPU_BATCH_SIZE, INCEPTION, Extractor, Features
from rjem_cli.engine.metrics.feature_choice import (
    check_features,
    check_same_features,
    choose_features,
    describe_features,
    find_replacement,
    load_extractor,
)
from rjem_cli.engine.metrics.features import Chunk, compute_features, count_missing, load_features, split_chunks
from rjem_cli.engine.metrics.reference import Reference, default_reference, read_reference, recorded_size
from rjem_cli.engine.metrics.registry import REGISTRY, EvalPlan, score_name
from rjem_cli.engine.runtime import scoring_runtime
from rjem_cli.engine.timing import FORWARD, median_seconds
from rjem_cli.engine.training.estimate import DataShape, estimate_training
from rjem_cli.errors import AbsentError, ConfigError, RjemError
from rjem_cli.paths import is_dataset_or_part

STANDARD_COUNT = 50_000  # samples of a published FID
ENOUGH_PER_FEATURE = 5  # samples per feature; with fewer, a Frechet distance is inflated
SHOWN, COLUMNS = 50, 5  # images in nearest.png
UNKNOWN_SELECTION = "unknown"


@dataclass(frozen=True)
class EvalJob:
    """Everything that is known before features are computed. `real_chunks` is empty if the reference is statistics."""

    plan: EvalPlan
    extractor: Extractor
    chunks: list[Chunk]
    real_chunks: list[Chunk]
    batches: BatchSizer

    @property
    def missing(self) -> int:
        """Images without cached features."""
        return count_missing(self.chunks) + count_missing(self.real_chunks)


@dataclass(frozen=True)
class SampleScores:
    """`scores` by name; `per_class` by kind and class."""

    context: EvalContext
    scores: registry.Scores
    per_class: registry.PerClass


def score_samples(
    config: EvalConfig, samples: ImageCollection, log: Log = noop, on_progress: OnProgress = noop
) -> tuple[dict[str, float], dict[str, Any]]:
    """(scores by name, the document that `rjem eval --json` prints). `on_progress` may raise to stop.
    Raises ConfigError, AbsentError or DataError."""
    start = time.perf_counter()
    check_options(config)
    job = prepare_evaluation(plan_evaluation(config, samples), log, on_progress)
    result = evaluate_samples(job, on_progress)
    return result.scores, describe_sample_scores(job, result, time.perf_counter() - start)


# --- plan ---


def check_options(config: EvalConfig) -> None:
    """Raise ConfigError or AbsentError for options that are wrong whatever the images are."""
    registry.parse_metrics(config.metrics)
    check_features(config.features)
    results.parse_requirements(config.require)
    scoring_runtime(config.device)


def read_samples(
    locations: Sequence[str], stdin: Callable[[], BinaryIO], image_size: int | None = None
) -> ImageCollection:
    """One set of samples, from one or several locations: a folder or file, `-` for a tar on stdin, or part of a data
    set such as `digits:test` or `photos.tar:test`, whose scores are a bound for those of samples. Raises ConfigError,
    AbsentError or DataError."""
    if len(locations) > 1 and (part := next(filter(is_dataset_or_part, locations), None)):
        raise ConfigError(f"{part} is a data set; several locations must be parts of one set of samples")
    parts = []
    for location in locations:
        if is_dataset_or_part(location):
            images = read_reference(location, "standard", image_size=image_size).images
            assert images is not None
            parts.append(images)
        elif location == STREAM:
            parts.append(read_stream(stdin(), "standard input", image_size))
        else:
            parts.append(read_collection(location, image_size))
    return merge_collections(parts)


def plan_evaluation(config: EvalConfig, samples: ImageCollection, reference: Reference | None = None) -> EvalPlan:
    """Choose features, and decide which metrics to compute. Reads the `reference` if none is given. Raises ConfigError,
    AbsentError or DataError."""
    used = samples.spread(config.num)
    reference = reference or load_reference(config, used)
    choice = choose_features(config.features, reference)
    inputs = EvalInputs(config, used, len(samples), reference, choice, scoring_runtime(config.device))
    return registry.make_plan(inputs, results.parse_requirements(config.require))


def load_reference(config: EvalConfig, samples: ImageCollection) -> Reference:
    size = config.image_size or recorded_size(samples)
    if config.reference is not None:
        return read_reference(config.reference, config.protocol, image_size=size)
    name, test_data = default_reference(samples, config.protocol)
    try:
        return read_reference(name, config.protocol, test_data, size)
    except AbsentError as error:
        raise AbsentError(f"{error} (the default reference; give another with --reference)") from None


def describe_judge_training(inputs: EvalInputs) -> str | None:
    """None unless a judge must be trained first."""
    load_splits = inputs.reference.load_splits
    if inputs.choice.kind != "judge" or load_splits is None:
        return None
    splits = load_splits()
    if judge.load_judge(splits, inputs.runtime.device) is not None:
        return None
    config = judge.judge_config(splits)
    return f"{config.architecture}, {config.steps} steps of {config.batch_size} images"


def estimate_seconds(plan: EvalPlan) -> float | None:
    """Of computing all features, without downloading, training or caching anything; None if a network must be
    downloaded first. Raises as `prepare_evaluation` does."""
    inputs, runtime = plan.inputs, plan.inputs.runtime
    if inputs.choice.needs_download:
        return None
    if describe_judge_training(inputs) is not None:
        assert inputs.reference.load_splits is not None
        splits = inputs.reference.load_splits()
        training = estimate_training(judge.judge_config(splits), DataShape.from_splits(splits), runtime)
        return training.step_seconds * (training.steps + FORWARD * inputs.image_count / judge.BATCH_SIZE)
    job = prepare_evaluation(plan)
    if not job.missing:
        return 0.0
    batch, device = job.chunks[0][1][: job.batches.batch_size], runtime.device
    seconds = median_seconds(lambda: compute_features(batch, job.extractor, device, job.batches), device)
    return job.missing / len(batch) * seconds


# --- prepare and evaluate ---


def prepare_evaluation(plan: EvalPlan, log: Log = noop, on_progress: OnProgress = noop) -> EvalJob:
    """Download, load or train the network for features; `on_progress` may raise to stop. Raises AbsentError if weights
    are not available and nothing can replace them, DataError for unusable weights."""
    try:
        extractor = load_extractor(plan.inputs.choice, plan.inputs.reference, plan.inputs.runtime, on_progress)
    except AbsentError as error:
        plan = plan_replacement(plan, error)
        log(f"features by {plan.inputs.choice.kind} ({plan.inputs.choice.reason})")
        extractor = load_extractor(plan.inputs.choice, plan.inputs.reference, plan.inputs.runtime, on_progress)
    check_same_features(plan.inputs.reference, extractor)
    samples, real = plan.inputs.samples, plan.inputs.reference.images
    chunks = split_chunks(samples.pixels, extractor, samples.name)
    real_chunks = [] if real is None else split_chunks(real.pixels, extractor, real.name)
    batch_size = plan.inputs.config.batch_size or BATCH_SIZE.get(plan.inputs.runtime.device.type, GPU_BATCH_SIZE)
    return EvalJob(plan, extractor, chunks, real_chunks, BatchSizer(batch_size, log))


def plan_replacement(plan: EvalPlan, error: AbsentError) -> EvalPlan:
    """The same plan with other features, if --features is auto and they allow everything that was asked for. Raises
    AbsentError with the remedy otherwise."""
    inputs = plan.inputs
    if inputs.choice.kind != "inception":
        raise error
    remedy = f"try again, or download {INCEPTION.url} and give it with --features PATH"
    if inputs.config.features != "auto":
        raise AbsentError(f"{error}; {remedy}, or use --features efficientnet-lite0 or judge") from None
    try:
        choice = describe_features(find_replacement(inputs.reference) or "judge", f"auto: {error}", inputs.reference)
        return registry.make_plan(replace(inputs, choice=choice), plan.requirements)
    except RjemError as reason:
        raise AbsentError(f"{error}; no other features can be used ({reason}); {remedy}") from None


def evaluate_samples(job: EvalJob, on_progress: OnProgress = noop) -> SampleScores:
    """Compute features of samples and reference, then the scores; `on_progress` may raise to stop. Raises DataError for
    a score that is not finite."""
    device = job.plan.inputs.runtime.device

    def load(chunks: list[Chunk], phase: str) -> Features:
        total = sum(len(pixels) for _, pixels in chunks)
        on_progress(phase, 0, total)
        return load_features(chunks, job.extractor, device, job.batches, lambda done: on_progress(phase, done, total))

    real = load(job.real_chunks, "features of the reference") if job.real_chunks else None
    generated = load(job.chunks, "features of the samples")
    context = EvalContext(job.plan.inputs, job.extractor, generated, real)
    return SampleScores(context, *registry.compute_scores(context, job.plan.metrics, on_progress))


# --- describe ---


def describe_sample_scores(job: EvalJob, result: SampleScores, seconds: float) -> dict[str, Any]:
    """Scores by name, with the protocol they depend on and notes on what limits them."""
    return {
        **results.describe_call("samples", result.scores, job.plan.requirements, seconds),
        "per_class": result.per_class,
        "protocol": describe_protocol(job, result.context),
        "notes": list_notes(job, result.context),
    }


def describe_protocol(job: EvalJob, context: EvalContext) -> dict[str, Any]:
    """Everything that the scores depend on."""
    inputs, samples, meta = context.inputs, context.inputs.samples, context.inputs.samples.meta or {}
    return {
        "name": inputs.config.protocol,
        "samples": {
            "from": samples.name,
            "count": len(samples),
            "of": inputs.total,
            "shape": list(samples.image_shape),
            "pixels": "uint8",
            "sha256": samples.digest(),
            "selection": meta.get("selection", UNKNOWN_SELECTION),
            "checkpoint_sha256": meta.get("checkpoint_sha256"),
            "request": meta.get("request"),
        },
        "reference": describe_reference(inputs.reference),
        "features": {
            **job.extractor.identity,
            **job.extractor.about,
            "arithmetic": "float32",
            "reason": inputs.choice.reason,
        },
        "metrics": {name: describe_metric(name, job.plan, context) for name in job.plan.metrics},
        "device": inputs.runtime.describe(),
        "versions": {"torch": torch.__version__, "torch-fidelity": importlib.metadata.version("torch-fidelity")},
    }


def describe_reference(reference: Reference) -> dict[str, Any]:
    document: dict[str, Any] = {"name": reference.name, "count": None, "shape": None}
    if (images := reference.images) is not None:
        document |= {"count": len(images), "shape": list(images.image_shape), "sha256": images.digest()}
    if reference.statistics is not None:
        content = reference.statistics.mu.tobytes() + reference.statistics.sigma.tobytes()
        document["statistics_sha256"] = hashlib.sha256(content).hexdigest()
    return document


def describe_metric(name: str, plan: EvalPlan, context: EvalContext) -> dict[str, Any]:
    """Its scores, which values are better, what they are, and its settings."""
    scores = {
        score_name(key, context.extractor.suffix): {"better": score.better, "description": score.description}
        for key, score in REGISTRY[name].scores.items()
    }
    scores = {key: score for key, score in scores.items() if key in plan.score_names}
    return {"scores": scores, "settings": REGISTRY[name].settings(context)}


def list_notes(job: EvalJob, context: EvalContext) -> list[str]:
    """What is left out and what limits a score."""
    inputs, metrics = context.inputs, job.plan.metrics
    notes = [*job.plan.notes, *job.extractor.notes]
    if (inputs.samples.meta or {}).get("complete") is False:
        notes.append("the samples are from an unfinished call")
    if inputs.reference.images is not None and not inputs.same_shape:
        notes.append("samples and reference differ in size, so the resize adds to the distance")
    for metric in ("fid", "intra_fid"):
        if metric in metrics and REGISTRY[metric].settings(context)["rank"] == "deficient":
            name = score_name(metric, job.extractor.suffix)
            notes.append(f"{name} has rank-deficient covariances: fewer images than features (--allow-few)")
    sampled = sum(counts[0] > 0 for counts in inputs.class_counts.values())
    if inputs.class_counts and sampled < len(inputs.class_names):
        classes = f"{sampled} of the reference's {len(inputs.class_names)} classes"
        notes.append(f"the samples have {classes}, which adds to the distance")
    if "fid" in metrics:
        notes += list_frechet_notes(inputs)
    if "kid" in metrics and inputs.kid_subset_size in (len(inputs.samples), inputs.real_count):
        notes.append("each subset of the kernel distance is a full set, so its deviation is too small")
    if {"precision_recall", "density_coverage"} & set(metrics) and inputs.real_count != len(inputs.samples):
        notes.append(
            "precision, recall, density and coverage depend on the numbers of samples and reference images: compare at "
            "equal numbers"
        )
    return notes


def list_frechet_notes(inputs: EvalInputs) -> list[str]:
    count, notes = len(inputs.samples), []
    if count < ENOUGH_PER_FEATURE * inputs.choice.dimensions:
        notes.append(f"a Frechet distance falls as samples grow in number, by about c/N: compare at {count} samples")
    if inputs.config.protocol == "standard" and count != STANDARD_COUNT and not inputs.choice.suffix:
        notes.append(f"published FIDs use {STANDARD_COUNT} samples, this one uses {count}")
    if inputs.reference.statistics is not None and not inputs.reference.statistics.features:
        notes.append("the statistics file does not say which network and resize it was made with")
    if inputs.reference.statistics is not None and inputs.real_count is not None:
        notes.append(f"FID uses the file's mu and sigma, other scores its {inputs.real_count} images")
    return notes


def draw_figures(job: EvalJob, result: SampleScores) -> results.Figures:
    figures: results.Figures = {}
    if "share" in result.per_class:
        figures["classes.png"] = lambda: draw_classes(result)
    if "memorization" in job.plan.metrics:
        figures["nearest.png"] = lambda: draw_nearest(result.context)
    return figures


def draw_classes(result: SampleScores) -> bytes:
    shares, real_shares = result.per_class["share"], result.per_class["share_real"]
    title = f"{result.context.inputs.samples.name}, classes {registry.describe_predicted_classes(result.context)}"
    return class_bars(list(shares), list(shares.values()), list(real_shares.values()), title)


def draw_nearest(context: EvalContext) -> bytes:
    """Evenly spaced samples beside their nearest real images, then the samples that are closest to a real image."""
    samples, reference, neighbours = context.inputs.samples, context.inputs.reference.images, context.neighbours
    assert reference is not None
    spread = spread_indices(len(samples), SHOWN)
    closest = neighbours.distance.cpu().argsort()[: len(spread)]
    sheets = []
    for title, indices in (("samples", spread), ("closest samples", closest)):
        real = reference.pixels[neighbours.nearest.cpu()[indices]]
        sheets.append((title, contact_sheet(convert_channels(samples.pixels[indices], 3, title), COLUMNS)))
        sheets.append(("nearest in the reference", contact_sheet(convert_channels(real, 3, title), COLUMNS)))
    return png_bytes(side_by_side(sheets))
