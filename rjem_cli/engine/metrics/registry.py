"""Every metric of samples, declared once beside the function that computes it; and which of them to compute."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from rjem_cli.config.common import METRICS
from rjem_cli.engine.callbacks import OnProgress, noop
from rjem_cli.engine.metrics import distances
from rjem_cli.engine.metrics.eval_inputs import EvalContext, EvalInputs
from rjem_cli.engine.metrics.feature_choice import check_fits
from rjem_cli.engine.metrics.results import Requirement, check_finite, check_score_names
from rjem_cli.errors import ConfigError, DataError, did_you_mean

Scores = dict[str, float]
PerClass = dict[str, dict[str, float]]  # kind: class name: value
Compute = Callable[[EvalContext], tuple[Scores, PerClass]]


class Score(NamedTuple):
    """`other_name` is its name with features other than Inception's, `{}` their suffix. `better` says which values are
    better (empty if that depends on the reference), `description` what its name does not say."""

    other_name: str
    better: str = ""
    description: str = ""


@dataclass(frozen=True)
class Metric:
    """`compute` returns scores under their Inception names (`fid`), which `score_name` changes for other features
    (`fd_judge`). `unavailable_reason` says why the inputs do not
    allow this metric, or is None. `settings` go into the protocol."""

    scores: dict[str, Score]
    compute: Compute
    unavailable_reason: Callable[[EvalInputs], str | None]
    settings: Callable[[EvalContext], dict[str, Any]]


REGISTRY: dict[str, Metric] = {}


def metric(
    name: str,
    scores: dict[str, Score],
    unavailable_reason: Callable[[EvalInputs], str | None],
    settings: Callable[[EvalContext], dict[str, Any]] = lambda context: {},
) -> Callable[[Compute], Compute]:
    """Add the decorated function to the REGISTRY."""

    def register(compute: Compute) -> Compute:
        REGISTRY[name] = Metric(scores, compute, unavailable_reason, settings)
        return compute

    return register


def score_name(name: str, suffix: str) -> str:
    """`fid` with a judge's features is `fd_judge`."""
    scores = {name: score for metric in REGISTRY.values() for name, score in metric.scores.items()}
    return scores[name].other_name.format(suffix) if suffix and name in scores else name


def too_few_for_neighbours(inputs: EvalInputs, neighbours: int) -> str | None:
    if inputs.real_count is None:
        return "the reference is statistics, not images"
    fewest = min(len(inputs.samples), inputs.real_count)
    return f"{fewest} images are too few for {neighbours} neighbours" if fewest <= neighbours else None


def too_few_for_coverage(inputs: EvalInputs) -> str | None:
    return too_few_for_neighbours(inputs, inputs.config.coverage_neighbours)


# --- the metrics, in the order of config.METRICS ---


def too_few_for_frechet(inputs: EvalInputs) -> str | None:
    fewest = inputs.frechet_minimum
    for count, name in zip(inputs.covariance_counts, ("samples", "reference images")):
        if count is not None and count < fewest:
            remedy = f"use {fewest} or more" + ("" if inputs.config.allow_few else ", or add --allow-few")
            return f"{count} {name} are too few for {inputs.choice.dimensions} features; {remedy}"
    return None


def frechet_settings(context: EvalContext) -> dict[str, Any]:
    inputs = context.inputs
    return {"features": inputs.choice.dimensions, "rank": inputs.describe_rank(*inputs.covariance_counts)}


@metric("fid", {"fid": Score("fd{}", "lower")}, too_few_for_frechet, frechet_settings)
def compute_fid(context: EvalContext) -> tuple[Scores, PerClass]:
    generated = distances.fit_statistics(context.generated.features)
    return {"fid": distances.frechet_distance(generated, context.real_statistics)}, {}


def too_few_for_is(inputs: EvalInputs) -> str | None:
    splits, count = inputs.config.is_splits, len(inputs.samples)
    if inputs.choice.kind == "dinov2":
        return "DINOv2 has no logits"
    return f"{count} samples are too few for {splits} splits; lower --is-splits" if count < 2 * splits else None


@metric(
    "is",
    {"isc_mean": Score("is{}", "higher"), "isc_std": Score("is{}_std")},
    too_few_for_is,
    lambda context: {"splits": context.inputs.config.is_splits, "seed": context.inputs.config.seed},
)
def compute_is(context: EvalContext) -> tuple[Scores, PerClass]:
    assert context.generated.logits is not None
    config = context.inputs.config
    mean, deviation = distances.inception_score(context.generated.logits, config.is_splits, config.seed)
    return {"isc_mean": mean, "isc_std": deviation}, {}


def kid_settings(context: EvalContext) -> dict[str, Any]:
    config, size = context.inputs.config, context.inputs.kid_subset_size
    return {"subsets": config.kid_subsets, "size": size, "kernel": "cubic", "seed": config.seed}


@metric(
    "kid",
    {"kid_mean": Score("kd{}_mean", "lower"), "kid_std": Score("kd{}_std")},
    lambda inputs: too_few_for_neighbours(inputs, 1),
    kid_settings,
)
def compute_kid(context: EvalContext) -> tuple[Scores, PerClass]:
    config, features = context.inputs.config, (context.generated.features, context.real_features)
    size = context.inputs.kid_subset_size
    mean, deviation = distances.kernel_distance(*features, config.kid_subsets, size, config.seed)
    return {"kid_mean": mean, "kid_std": deviation}, {}


@metric(
    "precision_recall",
    {"precision": Score("precision{}", "higher"), "recall": Score("recall{}", "higher")},
    lambda inputs: too_few_for_neighbours(inputs, inputs.config.neighbours),
    lambda context: {"neighbours": context.inputs.config.neighbours},
)
def compute_precision_recall(context: EvalContext) -> tuple[Scores, PerClass]:
    precision, recall = distances.precision_recall(*context.features_on_device, context.inputs.config.neighbours)
    return {"precision": precision, "recall": recall}, {}


@metric(
    "density_coverage",
    {"density": Score("density{}", "higher"), "coverage": Score("coverage{}", "higher")},
    too_few_for_coverage,
    lambda context: {"neighbours": context.inputs.config.coverage_neighbours},
)
def compute_density_coverage(context: EvalContext) -> tuple[Scores, PerClass]:
    return {"density": context.neighbours.density, "coverage": context.neighbours.coverage}, {}


def too_few_for_intra_fid(inputs: EvalInputs) -> str | None:
    if inputs.samples.labels is None:
        return f"{inputs.samples.name} has no class for each image"
    if inputs.real_labels is None:
        return "the reference has no classes"
    counts = inputs.smaller_class_counts
    if not counts:
        return "the reference does not have all classes of the samples"
    name = min(counts, key=counts.__getitem__)
    if counts[name] < inputs.frechet_minimum:
        return f"class {name} has {counts[name]} images, but {inputs.frechet_minimum} are needed"
    return None


def intra_fid_settings(context: EvalContext) -> dict[str, Any]:
    counts, inputs = context.inputs.smaller_class_counts, context.inputs
    return {"classes": f"{len(counts)} of {len(inputs.class_names)}", "rank": inputs.describe_rank(*counts.values())}


@metric("intra_fid", {"intra_fid": Score("intra_fd{}", "lower")}, too_few_for_intra_fid, intra_fid_settings)
def compute_intra_fid(context: EvalContext) -> tuple[Scores, PerClass]:
    """The Frechet distance of each class that was sampled, and their mean."""
    inputs, values = context.inputs, {}
    for label, name in enumerate(inputs.class_names):
        if inputs.class_counts[name][0]:
            generated = context.generated.features[inputs.sample_labels == label]
            real = context.real_features[inputs.real_labels == label]
            if min(len(generated), len(real)) <= generated.shape[1]:
                values[name] = distances.low_rank_frechet_distance(generated, real)
            else:
                statistics = (distances.fit_statistics(part) for part in (generated, real))
                values[name] = distances.frechet_distance(*statistics)
    return {"intra_fid": sum(values.values()) / len(values)}, {score_name("fid", context.extractor.suffix): values}


def too_few_for_diversity(inputs: EvalInputs) -> str | None:
    if inputs.real_labels is None and inputs.real_count is not None:
        return "the reference has no classes"
    return too_few_for_coverage(inputs)


@metric(
    "diversity",
    {
        "class_entropy": Score("class_entropy{}", "", "nats"),
        "class_entropy_real": Score("class_entropy{}_real", "", "nats"),
        "class_agreement": Score("class_agreement{}", "higher", "share predicted as the requested class"),
        "within_class_distance": Score("within_class_distance{}", "", "mean"),
        "within_class_distance_real": Score("within_class_distance{}_real", "", "mean"),
    },
    too_few_for_diversity,
    lambda context: {"classes": describe_predicted_classes(context)},
)
def compute_diversity(context: EvalContext) -> tuple[Scores, PerClass]:
    inputs, predicted, names = context.inputs, context.predicted_classes, context.inputs.class_names
    assert inputs.real_labels is not None
    count, labels = len(names), predicted if inputs.sample_labels is None else inputs.sample_labels
    shares = distances.class_shares(predicted, count)
    real_shares = distances.class_shares(inputs.real_labels, count)
    scores = {"class_entropy": distances.entropy(shares), "class_entropy_real": distances.entropy(real_shares)}
    if inputs.sample_labels is not None:
        scores["class_agreement"] = float((predicted == labels).double().mean())
    within = {
        "within_class_distance": distances.within_class_distance(context.generated.features, labels, count),
        "within_class_distance_real": distances.within_class_distance(context.real_features, inputs.real_labels, count),
    }
    scores |= {name: value for name, value in within.items() if not math.isnan(value)}  # classes of one image have none
    per_class = {"share": shares, "share_real": real_shares}
    return scores, {kind: dict(zip(names, part.tolist())) for kind, part in per_class.items()}


def describe_predicted_classes(context: EvalContext) -> str:
    return "predicted by the judge" if context.judge_knows_classes else "of the nearest real image"


@metric(
    "memorization",
    {
        "nearest_distance": Score("nearest_distance{}", "", "median, to the nearest real image"),
        "nearest_distance_real": Score("nearest_distance{}_real", "", "median, from a real image to the next"),
        "near_copies": Score("near_copies{}", "lower", "share as close to a real image as 1 in 100 real ones"),
        "exact_copies": Score("exact_copies", "lower", "number of samples that equal a real image"),
    },
    too_few_for_coverage,
)
def compute_memorization(context: EvalContext) -> tuple[Scores, PerClass]:
    neighbours, inputs, real = context.neighbours, context.inputs, context.inputs.reference.images
    scores = {
        "nearest_distance": float(neighbours.distance.median()),
        "nearest_distance_real": float(neighbours.spacing.median()),
        "near_copies": distances.near_copies(neighbours.distance, neighbours.spacing),
    }
    if inputs.same_shape and real is not None:
        scores["exact_copies"] = distances.exact_copies(inputs.samples.pixels, real.pixels)
    return scores, {}


# --- which metrics to compute ---


@dataclass(frozen=True)
class EvalPlan:
    """`metrics` in the order of config.METRICS; `score_names` of these; `notes` on what is left out, and why."""

    inputs: EvalInputs
    requirements: tuple[Requirement, ...]
    metrics: tuple[str, ...]
    score_names: tuple[str, ...]
    notes: tuple[str, ...]

    def only(self, wanted: tuple[str, ...]) -> "EvalPlan":
        """Without other metrics, and without notes on them."""
        notes = tuple(note for note in self.notes if note.split()[0] in wanted)
        return replace(self, metrics=tuple(metric for metric in self.metrics if metric in wanted), notes=notes)


def parse_metrics(text: str) -> tuple[str, ...] | None:
    """None means all. Raises ConfigError for an unknown metric."""
    if text.strip() == "all":
        return None
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"--metrics {name!r} is unknown; {did_you_mean(name, METRICS)}, or all alone")
    return tuple(name for name in METRICS if name in names)


def make_plan(inputs: EvalInputs, requirements: tuple[Requirement, ...]) -> EvalPlan:
    """Raises ConfigError for inputs that the features do not go with, and for a requirement on a score that will not be
    computed; DataError if a metric that was asked for is unavailable, or all are."""
    check_fits(inputs.choice, inputs.samples, inputs.reference)
    requested, suffix = parse_metrics(inputs.config.metrics), inputs.choice.suffix
    metrics, notes = [], []
    for name in requested or METRICS:
        reason = REGISTRY[name].unavailable_reason(inputs)
        if reason is None:
            metrics.append(name)
        elif requested:
            raise DataError(f"--metrics {name}: {reason}")
        else:
            here = f" (here {score_name(next(iter(REGISTRY[name].scores)), suffix)})" if suffix else ""
            notes.append(f"{name}{here} is left out: {reason}")
    if not metrics:
        raise DataError(f"no metric is available: {'; '.join(notes)}")
    unavailable = {"class_agreement": inputs.sample_labels is None, "exact_copies": not inputs.same_shape}
    names = [name for metric in metrics for name in REGISTRY[metric].scores if not unavailable.get(name)]
    score_names = tuple(score_name(name, suffix) for name in names)
    check_score_names(requirements, score_names, lambda name: score_name(name, suffix))
    return EvalPlan(inputs, requirements, tuple(metrics), score_names, tuple(notes))


def compute_scores(
    context: EvalContext, metrics: tuple[str, ...], on_progress: OnProgress = noop
) -> tuple[Scores, PerClass]:
    """Scores by the names that their features give them, and values by kind and class. Raises DataError for a score
    that is not finite."""
    scores: Scores = {}
    per_class: PerClass = {}
    for number, metric in enumerate(metrics):
        on_progress("scoring", number, len(metrics))
        values, class_values = REGISTRY[metric].compute(context)
        scores |= {score_name(name, context.extractor.suffix): value for name, value in values.items()}
        per_class |= class_values
    on_progress("scoring", len(metrics), len(metrics))
    check_finite(scores, context.inputs.samples.name)
    return scores, per_class
