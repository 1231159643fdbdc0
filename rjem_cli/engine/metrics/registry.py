"""Every metric of samples, declared once: its scores, what they need, how they are computed, and their protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from rjem_cli.engine.metrics.eval_inputs import EvalInputs
from rjem_cli.engine.metrics.scores import (
    EvalContext,
    PerClass,
    Scores,
    score_density_coverage,
    score_diversity,
    score_fid,
    score_intra_fid,
    score_is,
    score_kid,
    score_memorization,
    score_prc,
)


class Score(NamedTuple):
    """What a score is called with features other than Inception's (`{}` is their suffix), which values are better
    (empty where that depends on the reference), and what it is where its name does not say."""

    other_name: str
    better: str = ""
    what: str = ""


@dataclass(frozen=True)
class Metric:
    """`unavailable_reason` says why a case cannot have this metric, or None; `settings` is its protocol."""

    scores: dict[str, Score]
    unavailable_reason: Callable[[EvalInputs], str | None]
    compute: Callable[[EvalContext], tuple[Scores, PerClass]]
    settings: Callable[[EvalInputs], dict[str, Any]]


def few_for_is(case: EvalInputs) -> str | None:
    splits, count = case.config.is_splits, len(case.samples)
    if case.choice.kind == "dinov2":
        return "DINOv2 has no logits"
    if count < 2 * splits:
        return f"{count} samples are too few for {splits} splits; lower --is-splits or give more"
    return None


def few_for_fid(case: EvalInputs) -> str | None:
    for count, name in zip(case.covariance_counts, ("samples", "reference images")):
        if count is not None and count < case.fewest_for_frechet:
            more = "" if case.config.allow_few else ", or add --allow-few"
            return (
                f"{count} {name} are too few for a Frechet distance of {case.choice.dimensions} features; "
                f"give {case.fewest_for_frechet} or more{more}"
            )
    return None


def few_for_neighbours(case: EvalInputs, count: int) -> str | None:
    if case.real_count is None:
        return "the reference is statistics, not images"
    if min(len(case.samples), case.real_count) <= count:
        return f"{min(len(case.samples), case.real_count)} images are too few for {count} neighbours"
    return None


def few_for_intra_fid(case: EvalInputs) -> str | None:
    if case.samples.labels is None:
        return f"{case.samples.name} has no classes: no labels, or not one for each image"
    if case.labels.real is None:
        return "the reference has no classes"
    if not case.class_counts:
        return "a class of the samples is unknown to the reference"
    name = min(case.class_counts, key=case.class_counts.__getitem__)
    if case.class_counts[name] < case.fewest_for_frechet:
        return f"class {name} has {case.class_counts[name]} images, and {case.fewest_for_frechet} are needed"
    return None


def few_for_diversity(case: EvalInputs) -> str | None:
    if case.labels.real is None and case.real_count is not None:
        return "the reference has no classes"
    return few_for_neighbours(case, case.config.coverage_neighbours)


def fid_settings(case: EvalInputs) -> dict[str, Any]:
    counts = case.covariance_counts
    ranks = [case.rank(count) for count in counts]
    rank = "deficient" if "deficient" in ranks else "unknown" if "unknown" in ranks else "full"
    return {"features": case.choice.dimensions, "rank": rank}


def intra_fid_settings(case: EvalInputs) -> dict[str, Any]:
    return {
        "classes": f"{len(case.class_counts)} of {len(case.labels.class_names)}",
        "rank": case.rank(min(case.class_counts.values())),
    }


def kid_settings(case: EvalInputs) -> dict[str, Any]:
    config = case.config
    return {"subsets": config.kid_subsets, "size": case.kid_subset_size(), "kernel": "cubic", "seed": config.seed}


CATALOGUE: dict[str, Metric] = {
    "fid": Metric({"fid": Score("fd{}", "lower")}, few_for_fid, score_fid, fid_settings),
    "is": Metric(
        {"isc_mean": Score("is{}", "higher"), "isc_std": Score("is{}_std")},
        few_for_is,
        score_is,
        lambda case: {"splits": case.config.is_splits, "seed": case.config.seed},
    ),
    "kid": Metric(
        {"kid_mean": Score("kd{}_mean", "lower"), "kid_std": Score("kd{}_std")},
        lambda case: few_for_neighbours(case, 1),
        score_kid,
        kid_settings,
    ),
    "prc": Metric(
        {"precision": Score("precision{}", "higher"), "recall": Score("recall{}", "higher")},
        lambda case: few_for_neighbours(case, case.config.neighbours),
        score_prc,
        lambda case: {"neighbours": case.config.neighbours},
    ),
    "dc": Metric(
        {"density": Score("density{}", "higher"), "coverage": Score("coverage{}", "higher")},
        lambda case: few_for_neighbours(case, case.config.coverage_neighbours),
        score_density_coverage,
        lambda case: {"neighbours": case.config.coverage_neighbours},
    ),
    "intra_fid": Metric(
        {"intra_fid": Score("intra_fd{}", "lower")}, few_for_intra_fid, score_intra_fid, intra_fid_settings
    ),
    "diversity": Metric(
        {
            "class_entropy": Score("class_entropy{}", "", "nats"),
            "class_entropy_real": Score("class_entropy{}_real", "", "nats"),
            "class_agreement": Score("class_agreement{}", "higher", "share seen as what was asked for"),
            "within_class_distance": Score("within_class_distance{}", "", "mean"),
            "within_class_distance_real": Score("within_class_distance{}_real", "", "mean"),
        },
        few_for_diversity,
        score_diversity,
        lambda case: {},
    ),
    "copies": Metric(
        {
            "nearest_distance": Score("nearest_distance{}", "", "median, to the nearest real image"),
            "nearest_distance_real": Score("nearest_distance{}_real", "", "median, of a real image to another"),
            "near_copies": Score("near_copies{}", "lower", "share as near to a real image as 1 in 100 real ones"),
            "exact_copies": Score("exact_copies", "lower", "number, pixel by pixel"),
        },
        lambda case: few_for_neighbours(case, case.config.coverage_neighbours),
        score_memorization,
        lambda case: {},
    ),
}
ALL_SCORES = {name: score for metric in CATALOGUE.values() for name, score in metric.scores.items()}


def score_name(name: str, suffix: str) -> str:
    """`fid` by a judge is `fd_judge`."""
    return ALL_SCORES[name].other_name.format(suffix) if suffix else name


def renamed(name: str, suffix: str) -> str | None:
    """None for what is no score."""
    return score_name(name, suffix) if name in ALL_SCORES else None
