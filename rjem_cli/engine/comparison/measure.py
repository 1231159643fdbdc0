"""From a subject, a run, a checkpoint or samples of any maker, to its rows. What was measured is kept, and not measured
again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from rjem_cli import __version__
from rjem_cli.config import CompareConfig, EvalConfig, GenerateConfig, SampleScoreOptions, TestOptions
from rjem_cli.engine.comparison.rows import COLUMNS, Origin, Protocol, Row
from rjem_cli.engine.comparison.sheets import sheet_of
from rjem_cli.engine.evaluation import checkpoint as checkpoint_scores
from rjem_cli.engine.model.checkpoint import Checkpoint
from rjem_cli.engine.quality import job as sample_scores
from rjem_cli.engine.quality.catalogue import CATALOGUE
from rjem_cli.engine.report.checkpoint import describe_checkpoint_scores
from rjem_cli.engine.report.quality import describe_reference, describe_sample_scores
from rjem_cli.engine.runtime import Runtime, Watch, start_runtime
from rjem_cli.engine.sampling.job import SampleJob, write_samples
from rjem_cli.engine.sampling.job import prepare as prepare_samples
from rjem_cli.engine.sampling.request import digest_of, settle_request
from rjem_cli.engine.training.metrics import read_lines
from rjem_cli.errors import RjemError
from rjem_cli.files import write_atomically
from rjem_cli.paths import comparisons_dir, run_of

TABLE_METRICS = tuple(name for name, metric in CATALOGUE.items() if metric.scores.keys() & COLUMNS.keys())
EPS, NORM = 0.1, "linf"  # of the robust accuracy: the paper's training attack


@dataclass(frozen=True)
class Work:
    """How work is followed: `watch` may raise, which ends it; `quietly` may not; `stop` asks whether it should end."""

    say: Callable[[str], None]
    watch: Watch
    quietly: Watch
    stop: Callable[[], bool]
    stdin: Callable[[], BinaryIO]

    def end(self, phase: str) -> NoReturn:
        """For work that came back unfinished: `watch` knows why it was stopped."""
        self.watch(phase, 0, 1)
        raise RjemError(f"{phase} was stopped; the same command goes on")


def eval_config(config: CompareConfig) -> EvalConfig:
    """The same knobs of `rjem eval`, whose figure of energies no row needs."""
    shared = {knob.name for group in (SampleScoreOptions, TestOptions) for knob in fields(group)} | {"device", "seed"}
    values = {name: getattr(config, name) for name in shared}
    values |= {"eps": config.eps or (EPS,), "norm": config.norm or NORM, "ood": "none", "samples": 0}
    return EvalConfig(**values)


def sample_row(config: CompareConfig, name: str, location: str, work: Work) -> Row:
    """Samples of any maker. Raises as `rjem eval` does."""
    inputs = sample_scores.read_inputs(eval_config(config), location, work.stdin)
    if config.metrics == "all":
        inputs = replace(inputs, plan=inputs.plan.only(TABLE_METRICS))
    case = inputs.case
    decisive = [case.config.to_dict(), case.samples.digest(), describe_reference(case.reference), case.choice.kind]
    kept = kept_path("scored", decisive)
    document = read_kept(kept)
    if document is None:
        work.say(f"{name}: scores of {len(case.samples)} samples")
        document = scored(inputs, work)
        write_atomically(kept, json.dumps(document).encode())
    scores = {column: float(document[column]) for column in COLUMNS if column in document}
    steps = (case.samples.meta or {}).get("gradient_steps_per_sample")
    if isinstance(steps, int):
        scores["gradient_steps"] = float(steps)
    real = case.reference.images
    origin = Origin(name, sheet_of(case.samples), None if real is None else sheet_of(real))
    return Row(name, scores, sample_protocols(document["protocol"]), notes=tuple(document["notes"]), origins=(origin,))


def scored(inputs: sample_scores.Inputs, work: Work) -> dict[str, Any]:
    """What `rjem eval` finds."""
    started = time.perf_counter()
    job = sample_scores.prepare(inputs, work.say, work.watch, work.quietly, work.stop)
    if job is None:
        work.end("training the judge")
    return describe_sample_scores(job, sample_scores.evaluate(job, work.watch), time.perf_counter() - started)


def sample_protocols(protocol: dict[str, Any]) -> dict[str, Protocol]:
    """By score: what two of them must share to be compared."""
    reference, features = protocol["reference"], protocol["features"]
    shared = {
        "protocol": protocol["name"],
        "reference": {"name": reference["name"], "count": reference["count"]}
        | {key: reference[key] for key in ("sha256", "statistics_sha256") if key in reference},
        "features": {key: features[key] for key in ("network", "weights_sha256", "resize")},
        "samples": protocol["samples"]["count"],
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
        work.say(f"{name}: {config.samples} samples, mode {mode}")
        made, timed = drawn(config, checkpoint, mode, work)
        scored = sample_row(config, f"{name} ({mode})", str(made), work)
        rows.append(
            replace(
                scored,
                scores=tested.scores | scored.scores | timed.scores,
                protocols=tested.protocols | scored.protocols | timed.protocols,
                notes=tuple(dict.fromkeys((*tested.notes, *scored.notes))),
                origins=(scored.origins[0]._replace(name=name, checkpoint=path),),
            )
        )
    return rows


def tested_row(config: CompareConfig, name: str, path: Path, work: Work) -> tuple[Row, Checkpoint]:
    """What the classifier can do, and what it has seen; and the classifier."""
    scoring = eval_config(config)
    job = checkpoint_scores.prepare(scoring, path)
    info = job.checkpoint.info
    kept = kept_path("tested", [scoring.to_dict(), job.checkpoint.sha256(), job.found.images.digest()])
    document = read_kept(kept)
    if document is None:
        work.say(f"{name}: accuracy on {len(job.found.images)} images")
        started = time.perf_counter()
        found = checkpoint_scores.evaluate(job, work.watch)
        document = describe_checkpoint_scores(job, found, time.perf_counter() - started)
        write_atomically(kept, json.dumps(document).encode())
    protocol = document["protocol"]
    images = {"images": protocol["data"], "count": protocol["images"], "of": protocol["of"]}
    images["indices"] = digest_of({"of": protocol["indices"]})
    robust = document["robust"][-1]
    scores = {
        "accuracy": float(document["accuracy"]),
        "robust_accuracy": float(robust["accuracy"]["value"]),
        "images_seen": float(info.step * info.config.batch_size),
    }
    run_dir = run_of(path)
    if run_dir is not None:
        scores["divergences"] = float(sum("event" in line for line in read_lines(run_dir / "metrics.jsonl")))
    attack = {**images, "attack": protocol["attack"], "eps": robust["eps_text"]}
    protocols = {"accuracy": images, "robust_accuracy": attack}
    return Row(name, scores, protocols, origins=(Origin(name, checkpoint=path),)), job.checkpoint


def drawn(config: CompareConfig, checkpoint: Checkpoint, mode: str, work: Work) -> tuple[Path, Row]:
    """The samples' .npz, drawn unless they are there, and what they cost."""
    runtime = start_runtime(config.device, reproducible=True)
    job = sample_job(config, checkpoint, mode, runtime)
    made = Path(job.config.output)
    timing = made.with_suffix(".json")
    if not made.exists():
        started, total = time.perf_counter(), config.samples
        phase = f"drawing samples ({mode})"
        written = write_samples(job, work.stdin, lambda done: work.quietly(phase, done, total), work.stop)
        if written.done < total:
            work.end(phase)
        seconds = (time.perf_counter() - started) / max(1, written.done - written.skipped)
        write_atomically(timing, json.dumps({"seconds_per_1000": 1000 * seconds}).encode())
    scores = {"gradient_steps": float(job.request.plan.gradient_steps)} | (read_kept(timing) or {})
    return made, Row(mode, scores, {"seconds_per_1000": {"device": runtime.describe()}})


def sample_job(config: CompareConfig, checkpoint: Checkpoint, mode: str, runtime: Runtime) -> SampleJob:
    """As `rjem generate` would draw them; the file's name is made of all that decides their bytes, and their number."""
    options = GenerateConfig(mode=mode, count=config.samples, seed=config.sample_seed, data=config.data)
    info = checkpoint.info
    request = settle_request(
        options, info.config, info.class_names, runtime.device.type, count=options.count, seed=options.seed, mode=mode
    )
    job = prepare_samples(options, checkpoint, request, runtime)
    made = comparisons_dir() / f"samples-{job.meta['request'][:32]}-{config.samples}.npz"
    return replace(job, config=replace(options, output=str(made)))


def kept_path(kind: str, decisive: list[Any]) -> Path:
    """Where a measurement is kept, under a name made of all that it depends on."""
    return comparisons_dir() / f"{kind}-{digest_of({'rjem': __version__, 'of': decisive})[:32]}.json"


def read_kept(path: Path) -> dict[str, Any] | None:
    """What an earlier call measured; None where there is none, or it cannot be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
