"""From a subject, a run, a checkpoint or samples of any maker, to its rows. What was measured is kept, and not measured
again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rjem_cli.config import CompareConfig, EvalConfig, EvalDataOptions, SampleScoreOptions
from rjem_cli.config.fields import Config
from rjem_cli.engine.compare.cached import Work, cache_path, cached
from rjem_cli.engine.compare.image_grid import sheet_of
from rjem_cli.engine.compare.rows import COLUMNS, Origin, Protocol, Row
from rjem_cli.engine.compare.samples import sample_checkpoint
from rjem_cli.engine.metrics import classifier
from rjem_cli.engine.metrics import samples as sample_scores
from rjem_cli.engine.metrics.classifier_report import describe_classifier_scores
from rjem_cli.engine.metrics.feature_choice import check_features
from rjem_cli.engine.metrics.reference import read_reference
from rjem_cli.engine.metrics.registry import CATALOGUE
from rjem_cli.engine.metrics.sample_report import UNKNOWN_SELECTION, describe_reference, describe_sample_scores
from rjem_cli.engine.metrics.selection import parse_metrics
from rjem_cli.engine.models.checkpoint import Checkpoint
from rjem_cli.engine.sampling.request import json_digest
from rjem_cli.engine.training.metrics_log import events_in, read_lines
from rjem_cli.paths import find_run_dir, parse_step

TABLE_METRICS = tuple(name for name, metric in CATALOGUE.items() if metric.scores.keys() & COLUMNS.keys())
EPS, NORM = 0.1, "linf"  # of the robust accuracy: the paper's training attack
MOST_STEPS = 10**9  # of a sample
NORMAL_95 = 1.96  # standard deviations on either side of an interval of 95 %


def eval_config(config: CompareConfig) -> EvalConfig:
    """The same knobs of `rjem eval`, whose figure of energies no row needs."""
    shared = {option.name for group in (SampleScoreOptions, EvalDataOptions) for option in fields(group)} | {
        "device",
        "seed",
    }
    values = {name: getattr(config, name) for name in shared}
    values |= {"eps": config.eps or (EPS,), "norm": config.norm or NORM, "ood": "none", "samples": 0}
    return EvalConfig(**values)


def check_scoring(config: CompareConfig) -> None:
    """What samples will be scored by, before any are drawn for it. Raises as `rjem eval` does."""
    parse_metrics(config.metrics)
    check_features(config.features)
    if config.reference is not None:
        read_reference(config.reference, config.protocol)


def read_samples(config: CompareConfig, location: str, work: Work) -> sample_scores.Inputs:
    """Samples of any maker, and their plan. Raises as `rjem eval` does."""
    inputs = sample_scores.read_inputs(eval_config(config), [location], work.stdin)
    return replace(inputs, plan=inputs.plan.only(TABLE_METRICS)) if config.metrics == "all" else inputs


def sample_row(name: str, inputs: sample_scores.Inputs, work: Work) -> Row:
    """Of samples of any maker. Raises as `rjem eval` does."""
    job = sample_scores.prepare(inputs, work.warn, work.watch, work.quietly, work.stop)
    if job is None:
        work.end("training the judge")
    case = job.inputs.case
    reference = describe_reference(case.reference)

    def measure() -> dict[str, Any]:
        work.say(f"{name}: scores of {len(case.samples)} samples")
        started = time.perf_counter()
        found = sample_scores.evaluate(job, work.watch)
        return describe_sample_scores(job, found, time.perf_counter() - started)

    def read(document: dict[str, Any]) -> Row:
        protocol, notes = document["protocol"], [str(note) for note in document["notes"]]
        scores = {column: float(document[column]) for column in COLUMNS if column in document}
        if protocol["samples"]["selection"] == UNKNOWN_SELECTION:
            notes.append("whether samples were selected is not known")
        sheet = sheet_of(case.samples, case.labels.class_names)
        real = None if case.reference.images is None else sheet_of(case.reference.images)
        return Row(
            name,
            scores | steps_of(case.samples.meta),
            sample_protocols(protocol),
            notes=tuple(notes),
            spreads={column: float(document[std_of(column)]) for column in scores if std_of(column) in document},
            origins=(Origin(name, sheet, real, protocol={"samples": protocol}),),
        )

    scoring = decided_by(case.config, SampleScoreOptions, but=("reference", "num"))  # by their images
    decisive = [scoring, case.samples.digest(), case.samples.meta, reference, job.extractor.identity]
    return cached(cache_path("scored", decisive), read, measure)


def decided_by(config: EvalConfig, group: type[Config], but: Sequence[str] = ()) -> dict[str, Any]:
    """The knobs of one group, by which a measurement is kept: one of samples does not depend on those of tests."""
    names = {option.name for option in fields(group)} - set(but)
    return {name: getattr(config, name) for name in sorted(names | {"device", "seed"})}


def steps_of(meta: dict[str, Any] | None) -> dict[str, float]:
    """As rjem's own meta.json tells them; nothing where that cannot be."""
    steps = (meta or {}).get("gradient_steps_per_sample")
    return {"gradient_steps": float(steps)} if type(steps) is int and 0 <= steps <= MOST_STEPS else {}


def std_of(column: str) -> str:
    """The name of a score's own deviation, where it has one."""
    return f"{column.removesuffix('_mean')}_std"


def sample_protocols(protocol: dict[str, Any]) -> dict[str, Protocol]:
    """By score: what two of them must share to be compared. Images are known by what they are, not by their name; of
    samples whose maker says nothing it is assumed that none were selected."""
    reference, features, samples = protocol["reference"], protocol["features"], protocol["samples"]
    known = {key: reference[key] for key in ("sha256", "statistics_sha256") if key in reference}
    shared = {
        "protocol": protocol["name"],
        "reference": {"count": reference["count"], **known},
        "features": {key: features[key] for key in ("network", "weights_sha256", "resize")},
        "samples": samples["count"],
        "selection": "none" if samples["selection"] == UNKNOWN_SELECTION else samples["selection"],
    }
    return {
        score: {**shared, "settings": metric["settings"]}
        for metric in protocol["metrics"].values()
        for score in metric["scores"]
    }


def run_rows(config: CompareConfig, name: str, path: Path, work: Work) -> list[Row]:
    """A run or checkpoint: one row for each way to sample it; one without samples where no way is asked for."""
    tested, checkpoint = tested_row(config, name, path, work)
    rows = [tested] if not config.modes else []
    for mode in config.modes:
        work.say(f"{name}: {config.sample_count} samples, mode {mode}")
        made = sample_checkpoint(config, checkpoint, mode, work)
        scored = sample_row(f"{name} ({mode})", read_samples(config, str(made.file), work), work)
        rows.append(
            replace(
                scored,
                scores=tested.scores | scored.scores | made.costs,
                protocols=tested.protocols | scored.protocols | made.protocols,
                notes=tuple(dict.fromkeys((*tested.notes, *scored.notes))),
                spreads=tested.spreads | scored.spreads,
                origins=(merged(name, mode, tested.origins[0], scored.origins[0]),),
            )
        )
    return rows


def merged(name: str, mode: str, tested: Origin, scored: Origin) -> Origin:
    protocol = tested.protocol | scored.protocol
    return replace(
        scored, name=name, checkpoint=tested.checkpoint, mode=mode, settings=tested.settings, protocol=protocol
    )


def tested_row(config: CompareConfig, name: str, path: Path, work: Work) -> tuple[Row, Checkpoint]:
    """What the classifier can do, and what it has seen; and the classifier."""
    scoring = eval_config(config)
    job = classifier.prepare_classifier(scoring, path)
    info, sha256 = job.checkpoint.info, job.test.images.digest()

    def measure() -> dict[str, Any]:
        work.say(f"{name}: accuracy on {len(job.test.images)} images")
        started = time.perf_counter()
        found = classifier.evaluate_classifier(job, work.watch)
        return describe_classifier_scores(job, found, time.perf_counter() - started)

    def read(document: dict[str, Any]) -> Row:
        protocol, robust = document["protocol"], document["robust"][-1]
        images = {"images": sha256, "count": protocol["images"]}
        attack = {**images, "attack": protocol["attack"], "eps": robust["eps_text"], "seed": protocol["seed"]}
        intervals = {"accuracy": document["accuracy_interval_95"], "robust_accuracy": robust["accuracy"]["interval_95"]}
        details = {**protocol, "indices": json_digest({"of": protocol["indices"]})}
        scores = {
            "accuracy": float(document["accuracy"]),
            "robust_accuracy": float(robust["accuracy"]["value"]),
            "images_seen": float(info.images_seen),
        }
        return Row(
            name,
            scores | divergences_of(path),
            {"accuracy": images, "robust_accuracy": attack},
            spreads={column: (high - low) / (2 * NORMAL_95) for column, (low, high) in intervals.items()},
            origins=(Origin(name, checkpoint=path, settings=info.config.to_dict(), protocol={"checkpoint": details}),),
        )

    decisive = [decided_by(scoring, EvalDataOptions), job.checkpoint.sha256, sha256]
    return cached(cache_path("tested", decisive), read, measure), job.checkpoint


def divergences_of(checkpoint: Path) -> dict[str, float]:
    """How often its run diverged up to it; nothing where no metrics tell."""
    run_dir = find_run_dir(checkpoint)
    lines = read_lines(run_dir / "metrics.jsonl") if run_dir else []
    return {"divergences": float(len(events_in(lines, parse_step(checkpoint))))} if lines else {}
