"""Rows of checkpoints and of samples from any source. Measurements are cached."""

import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rjem_cli.config.fields import Config
from rjem_cli.config.scoring import (
    STANDARD_FIXES,
    AttackConfig,
    CompareConfig,
    EvalConfig,
    EvalDataOptions,
    SampleScoreOptions,
)
from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.attacks.attack_report import describe_protocol, prepare_attack
from rjem_cli.engine.attacks.robustness import evaluate_clean
from rjem_cli.engine.compare.cache import CompareCallbacks, cache_path, load_or_measure, read_document
from rjem_cli.engine.compare.rows import COLUMNS, Origin, Protocol, Row
from rjem_cli.engine.compare.samples import image_grid, sample_checkpoint
from rjem_cli.engine.data.downloads import DATASET_INFO
from rjem_cli.engine.metrics import classifier
from rjem_cli.engine.metrics import samples as sample_scores
from rjem_cli.engine.metrics.feature_choice import feature_dimensions
from rjem_cli.engine.metrics.reference import read_reference
from rjem_cli.engine.metrics.registry import REGISTRY, EvalPlan, parse_metrics
from rjem_cli.engine.metrics.samples import UNKNOWN_SELECTION, describe_reference, describe_sample_scores
from rjem_cli.engine.models.checkpoint import Checkpoint, CheckpointInfo, read_info
from rjem_cli.engine.training.metrics_log import events_in, read_lines
from rjem_cli.engine.training.optimizer import total_steps
from rjem_cli.errors import ConfigError
from rjem_cli.files import json_digest
from rjem_cli.paths import find_run_dir

TABLE_METRICS = tuple(name for name, metric in REGISTRY.items() if metric.scores.keys() & COLUMNS.keys())
EPS, NORM = 0.1, "linf"  # of the robust accuracy: the paper's training attack
MOST_STEPS = 10**9  # of a sample
NORMAL_95 = 1.96  # half the width of a 95 % interval, in standard deviations


def eval_config(config: CompareConfig, features: str = "auto") -> EvalConfig:
    """The options that compare shares with `rjem eval`. Nothing is computed that no column shows."""
    values = {name: getattr(config, name) for name in option_names(SampleScoreOptions, EvalDataOptions)}
    values |= {
        "eps": config.eps or (EPS,),
        "norm": config.norm or NORM,
        "ood": "none",
        "samples": 0,
        "features": features,
    }
    return EvalConfig(**values)


def option_names(*groups: type[Config]) -> set[str]:
    """The options of some groups, with the device and the seed."""
    return {option.name for group in groups for option in fields(group)} | {"device", "seed"}


def deciding_options(config: EvalConfig, group: type[Config], without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The options of one group, as a part of a cache key: scores of samples do not depend on those of tests."""
    return {name: getattr(config, name) for name in sorted(option_names(group) - set(without))}


def check_scoring(config: CompareConfig, checkpoints: Sequence[Path]) -> None:
    """Check metrics, features and reference before any samples are drawn. Raises as `rjem eval` does."""
    sizes = [size for path in checkpoints if (size := read_info(path).config.image_size)]
    for kind in config.feature_kinds:
        sample_scores.check_options(eval_config(config, kind))
        dimensions = feature_dimensions(kind) or 0
        asked = "fid" in (parse_metrics(config.metrics) or ()) and not config.allow_few
        if config.modes and asked and config.sample_count <= dimensions and (checkpoints or config.reproduce):
            raise ConfigError(
                f"--metrics fid: --samples {config.sample_count} are too few for {dimensions} features; "
                f"use {dimensions + 1} or more, or add --allow-few"
            )
    if config.reference is not None:
        read_reference(config.reference, config.protocol, image_size=config.image_size or next(iter(sizes), None))


def plan_samples(config: CompareConfig, location: str, callbacks: CompareCallbacks) -> list[EvalPlan]:
    """Samples from any source, and which metrics they get, for each kind of features. Raises as `rjem eval` does."""
    samples = sample_scores.read_samples([location], callbacks.open_stdin, config.image_size)
    plans: list[EvalPlan] = []
    for kind in config.feature_kinds:
        reference = plans[0].inputs.reference if plans else None  # it does not depend on the features, so read it once
        plans.append(sample_scores.plan_evaluation(eval_config(config, kind), samples, reference))
    return [plan.only(TABLE_METRICS) if config.metrics == "all" else plan for plan in plans]


def measure_samples(name: str, plans: Sequence[EvalPlan], callbacks: CompareCallbacks) -> Row:
    """The row of samples, with the scores of all plans. Raises as `rjem eval` does."""
    row, *others = [score_plan(name, plan, callbacks) for plan in plans]
    for other in others:
        kind = other.origins[0].protocol["samples"]["features"]["network"]
        protocol = row.origins[0].protocol | {f"samples, {kind}": other.origins[0].protocol["samples"]}
        row = replace(
            row,
            scores=row.scores | other.scores,
            protocols=row.protocols | other.protocols,
            notes=tuple(dict.fromkeys((*row.notes, *other.notes))),
            spreads=row.spreads | other.spreads,
            origins=(replace(row.origins[0], protocol=protocol),),
        )
    return row


def score_plan(name: str, plan: EvalPlan, callbacks: CompareCallbacks) -> Row:
    """The row of samples with one kind of features."""
    job = sample_scores.prepare_evaluation(plan, callbacks.warn, callbacks.on_progress)
    inputs, reference = job.plan.inputs, job.plan.inputs.reference

    def measure() -> dict[str, Any]:
        callbacks.log(inputs.samples.read_summary)
        callbacks.log(f"{name}: scoring {len(inputs.samples)} samples")
        started = time.perf_counter()
        scores = sample_scores.evaluate_samples(job, callbacks.on_progress)
        return describe_sample_scores(job, scores, time.perf_counter() - started)

    options = deciding_options(inputs.config, SampleScoreOptions, without=("reference", "num"))  # decided by the images
    decisive = [
        options,
        inputs.samples.digest(),
        inputs.samples.meta,
        describe_reference(reference),
        job.extractor.identity,
    ]
    document = load_or_measure(cache_path("scored", decisive), measure)
    protocol, notes = document["protocol"], document["notes"]
    if protocol["samples"]["selection"] == UNKNOWN_SELECTION:
        notes = [*notes, "unknown whether samples were selected"]
    scores = {column: document[column] for column in COLUMNS if column in document}
    deviations = {column: f"{column.removesuffix('_mean')}_std" for column in scores}
    steps = (inputs.samples.meta or {}).get("gradient_steps_per_sample")
    if type(steps) is int and 0 <= steps <= MOST_STEPS:  # meta.json may be anybody's
        scores["gradient_steps"] = float(steps)
    grid = image_grid(inputs.samples, inputs.class_names)
    real = None if reference.images is None else image_grid(reference.images)
    return Row(
        name,
        scores,
        sample_protocols(protocol),
        notes=tuple(notes),
        spreads={column: document[key] for column, key in deviations.items() if key in document},
        origins=(Origin(name, grid, real, protocol={"samples": protocol}),),
    )


def sample_protocols(protocol: dict[str, Any]) -> dict[str, Protocol]:
    """What two scores must share to be ranked, by score. Images are identified by digest and not by name. Samples of
    unknown selection count as not selected."""
    reference, features, samples = protocol["reference"], protocol["features"], protocol["samples"]
    digests = {key: reference[key] for key in ("sha256", "statistics_sha256") if key in reference}
    shared = {
        "protocol": protocol["name"],
        "reference": {"count": reference["count"], **digests},
        "features": {key: features[key] for key in ("network", "weights_sha256", "resize")},
        "samples": samples["count"],
        "selection": "none" if samples["selection"] == UNKNOWN_SELECTION else samples["selection"],
    }
    return {
        score: {**shared, "settings": metric["settings"]}
        for metric in protocol["metrics"].values()
        for score in metric["scores"]
    }


def measure_checkpoint(config: CompareConfig, name: str, path: Path, callbacks: CompareCallbacks) -> list[Row]:
    """A row for each sampling mode; with --mode none, one row without samples. Raises as `rjem generate` and `rjem
    eval` do."""
    tested, checkpoint = measure_classifier(config, name, path, callbacks)
    if config.standard:
        tested = measure_autoattack(config, tested, path, callbacks)
    rows = [] if config.modes else [tested]
    for mode in config.modes:
        callbacks.log(f"{name}: {config.sample_count} samples, mode {mode}")
        samples = sample_checkpoint(config, checkpoint, mode, callbacks)
        scored = measure_samples(f"{name} ({mode})", plan_samples(config, str(samples.file), callbacks), callbacks)
        origin = replace(
            tested.origins[0],
            mode=mode,
            samples=scored.origins[0].samples,
            real=scored.origins[0].real,
            protocol=tested.origins[0].protocol | scored.origins[0].protocol,
        )
        rows.append(
            replace(
                scored,
                scores=tested.scores | scored.scores | samples.costs,
                protocols=tested.protocols | scored.protocols | samples.protocols,
                notes=tuple(dict.fromkeys((*tested.notes, *scored.notes))),
                spreads=tested.spreads | scored.spreads,
                origins=(origin,),
            )
        )
    return rows


def measure_classifier(
    config: CompareConfig, name: str, path: Path, callbacks: CompareCallbacks
) -> tuple[Row, Checkpoint]:
    """The row of a checkpoint without samples: accuracies, and how it was trained; and the checkpoint."""
    scoring = eval_config(config)
    job = classifier.prepare_classifier(scoring, classifier.load_classifier(scoring, path))
    checkpoint, info, images_sha256 = job.model.checkpoint, job.model.info, job.test.images.digest()

    def measure() -> dict[str, Any]:
        callbacks.log(f"{name}: testing on {len(job.test.images)} images")
        started = time.perf_counter()
        scores = classifier.evaluate_classifier(job, callbacks.on_progress)
        return classifier.describe_classifier_scores(job, scores, time.perf_counter() - started)

    decisive = [deciding_options(scoring, EvalDataOptions), checkpoint.sha256, images_sha256]
    document = load_or_measure(cache_path("tested", decisive), measure)
    protocol, robust = document["protocol"], document["robust"][-1]
    images = {"images": images_sha256, "count": protocol["images"]}
    attack = {**images, "attack": protocol["attack"], "eps": robust["eps_text"], "seed": protocol["seed"]}
    intervals = {"accuracy": document["accuracy_interval_95"], "robust_accuracy": robust["accuracy"]["interval_95"]}
    details = {**protocol, "indices": json_digest({"indices": protocol["indices"]})}
    scores = {"accuracy": document["accuracy"], "robust_accuracy": robust["accuracy"]["value"]}
    row = Row(
        name,
        {**scores, "images_seen": float(info.images_seen), **count_divergences(path, info)},
        {"accuracy": images, "robust_accuracy": attack},
        notes=unfinished_notes(path, info),
        spreads={column: (high - low) / (2 * NORMAL_95) for column, (low, high) in intervals.items()},
        origins=(Origin(name, checkpoint=path, settings=info.config.to_dict(), protocol={"checkpoint": details}),),
    )
    return row, checkpoint


def measure_autoattack(config: CompareConfig, row: Row, path: Path, callbacks: CompareCallbacks) -> Row:
    """The row of a checkpoint with its accuracy under standard AutoAttack, at the radius of the robust accuracy and on
    the same images. Raises as `rjem attack --standard` does."""
    scoring = eval_config(config)
    values = {name: getattr(scoring, name) for name in option_names(EvalDataOptions) - {*STANDARD_FIXES, "restarts"}}
    job = prepare_attack(AttackConfig(**values, standard=True), path, callbacks.warn)

    def measure() -> dict[str, Any]:
        callbacks.log(f"{row.name}: AutoAttack on {len(job.dataset)} images")
        clean = evaluate_clean(job)
        (result,) = job.run(clean, lambda phase, done, total, _: callbacks.on_progress(phase, done, total))
        return {**result.robust_accuracy(clean).to_dict(), "protocol": describe_protocol(job)}

    decisive = [deciding_options(scoring, EvalDataOptions), job.model.checkpoint.sha256, job.dataset.images.digest()]
    document = load_or_measure(cache_path("autoattack", decisive), measure)
    low, high = document["interval_95"]
    protocol = {**row.protocols["accuracy"], "attack": document["protocol"]["attack"], "eps": list(job.radii)}
    return replace(
        row,
        scores=row.scores | {"standard_accuracy": document["value"]},
        protocols=row.protocols | {"standard_accuracy": protocol},
        spreads=row.spreads | {"standard_accuracy": (high - low) / (2 * NORMAL_95)},
    )


def count_divergences(path: Path, info: CheckpointInfo) -> dict[str, float]:
    """How often the run diverged before this checkpoint; empty without metrics of a run."""
    run_dir = find_run_dir(path)
    lines = read_lines(run_dir / "metrics.jsonl") if run_dir else []
    return {"divergences": float(len(events_in(lines, info.step)))} if lines else {}


def unfinished_notes(path: Path, info: CheckpointInfo) -> tuple[str, ...]:
    """A note for a checkpoint from before the last step of its training."""
    steps = count_steps(info.config)
    if steps is not None:
        return (f"training is unfinished: step {info.step} of {steps}",) if info.step < steps else ()
    run_dir = find_run_dir(path)  # its summary is written after the last step
    finished = run_dir is None or read_document(run_dir / "summary.json").get("step") == info.step
    return () if finished else (f"training is unfinished: step {info.step}",)


def count_steps(config: TrainConfig) -> int | None:
    """Training steps. None for epochs of images that would have to be read to be counted."""
    if config.data or config.dataset not in DATASET_INFO:
        return config.steps
    return total_steps(config, DATASET_INFO[config.dataset].split(config.val_fraction)[0])
