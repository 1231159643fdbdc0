"""The paper's Table 1 reproduced: three models with the same network, seeds and budget, sampled as in the paper. Every
step is cached, so a stopped call loses at most one."""

import contextlib
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rjem_cli import paths
from rjem_cli.config.scoring import SCALES, CompareConfig
from rjem_cli.config.sources import ConfigSource, preset_source, resolve
from rjem_cli.config.training import PAPER_SAMPLING, TrainConfig
from rjem_cli.engine.compare.cache import CompareCallbacks, read_document
from rjem_cli.engine.compare.measure import count_steps, measure_checkpoint
from rjem_cli.engine.compare.notes import TABLE1, Entry
from rjem_cli.engine.compare.rows import COLUMNS, Origin, Protocol, Row
from rjem_cli.engine.data.downloads import describe_download
from rjem_cli.engine.data.images import Splits
from rjem_cli.engine.data.load import load_splits
from rjem_cli.engine.models.checkpoint import CheckpointInfo, read_info
from rjem_cli.engine.sampling.pipeline import SamplePlan
from rjem_cli.engine.training import checkpointing
from rjem_cli.engine.training.arithmetic import start_training_runtime
from rjem_cli.engine.training.metrics_log import events_in, read_lines
from rjem_cli.engine.training.progress import TRAINING, Stopped, TrainingCallbacks, TrainingProgress
from rjem_cli.engine.training.run import run_training
from rjem_cli.errors import ConfigError, DataError, DivergedError

MODELS: dict[str, dict[str, Any]] = {  # what sets each model apart
    "jempp": {"pgd_steps": 0},  # no attack
    "robust": {"px_weight": 0.0},  # no energy model
    "rjem": {},
}
FREE = {"run", "data", "test_data", "device", "eval_limit"}  # options in which a cached run may differ
SUMMED = ("divergences", "runs_lost")


@dataclass(frozen=True)
class Training:
    """One run of the reproduction: one model with one seed."""

    model: str
    config: TrainConfig
    run_dir: Path

    @property
    def name(self) -> str:
        return self.run_dir.name

    @property
    def checkpoints(self) -> list[Path]:
        return paths.checkpoints_in(self.run_dir)

    @property
    def is_finished(self) -> bool:
        """Whether the run has evaluated its last checkpoint."""
        steps = [paths.parse_step(path) for path in self.checkpoints]
        return bool(steps) and read_document(self.run_dir / "summary.json").get("step") == steps[-1]

    @property
    def has_diverged(self) -> bool:
        """Whether the run gave up after too many divergences; it would do so again."""
        lines = read_lines(self.run_dir / "metrics.jsonl")
        return bool(lines) and "event" in lines[-1] and lines[-1]["lr_scale"] is None


def build_trainings(config: CompareConfig) -> list[Training]:
    """One training per seed and model. Raises ConfigError for invalid values."""
    data = paths.absolute(config.data)
    scale = SCALES[config.scale]
    values: dict[str, Any] = {"data": data, "test_data": paths.absolute(config.test_data), "dataset": config.dataset}
    values |= {
        **asdict(PAPER_SAMPLING),
        "steps": config.train_steps or scale.steps,
        "image_size": config.image_size,
        "device": config.device,
        "eval_limit": config.limit,
    }
    values = {name: value for name, value in values.items() if value is not None}
    images = Path(data).name.split(".")[0] if data else config.dataset
    changed = [f"{config.train_steps}-steps"] if config.train_steps else []
    changed += [f"{config.image_size}px"] if config.image_size else []
    preset = preset_source(scale.preset)
    trainings = []
    for seed in range(config.seeds):
        for model, changes in MODELS.items():
            name = "-".join(part for part in ("table1", config.scale, images, *changed, model, str(seed)) if part)
            source = ConfigSource("--reproduce", {**values, **changes, "seed": seed, "run": name})
            resolved = resolve(TrainConfig, [preset, source]).config
            trainings.append(Training(model, resolved, paths.runs_dir() / name))
    return trainings


def read_newest_info(training: Training) -> CheckpointInfo | None:
    """Of the newest intact checkpoint; None without one."""
    for path in reversed(training.checkpoints):
        with contextlib.suppress(DataError):
            return read_info(path)
    return None


def quarantine_damaged(training: Training, callbacks: CompareCallbacks) -> None:
    """Rename the newest checkpoints while they are damaged, so that the run is resumed from an intact one."""
    while training.checkpoints:
        newest = training.checkpoints[-1]
        try:
            read_info(newest)
        except DataError as error:
            callbacks.warn(str(error))
            checkpointing.quarantine(newest, callbacks.warn)
        else:
            return


def check_run(training: Training, splits: Splits | None = None) -> None:
    """Raises ConfigError or DataError if the folder has a run with other options or on other images (if `splits` are
    given), which cannot be part of this table."""
    info = read_newest_info(training)
    if info is None:
        return
    remedy = f"remove {training.run_dir} to train it again"
    before, now = info.config.to_dict(), training.config.to_dict()
    for name in now:
        if name not in FREE and before[name] != now[name]:
            raise ConfigError(
                f"{training.name} was trained with {name} {before[name]}, but this table needs {now[name]}; {remedy}"
            )
    if splits and info.data_digest != splits.train.digest():
        raise DataError(f"{training.name} was trained on other images than {splits.name} has now; {remedy}")


def train(training: Training, splits: Splits, callbacks: CompareCallbacks) -> None:
    """Start or resume the run, until it is finished or has diverged for good."""
    if not training.checkpoints:
        paths.check_unused(training.run_dir)
    newest = checkpointing.latest_valid(training.run_dir, callbacks.warn) if training.checkpoints else None
    phase = f"training {training.name}"

    def on_progress(progress: TrainingProgress) -> None:
        name = phase if progress.phase == TRAINING else progress.phase
        callbacks.show_progress(name, progress.step, progress.steps)

    try:
        result = run_training(
            training.config,
            splits,
            start_training_runtime(training.config, newest),
            training.run_dir,
            resume=bool(training.checkpoints),
            callbacks=TrainingCallbacks(on_progress, callbacks.log, callbacks.warn, callbacks.should_stop),
        )
    except DivergedError as error:
        callbacks.warn(str(error))
        return
    if not result.finished:
        raise Stopped


def reproduce_table1(config: CompareConfig, trainings: Sequence[Training], callbacks: CompareCallbacks) -> list[Row]:
    """The measured rows, each the mean over its seeds. `trainings` holds every model once per seed. Raises ConfigError
    or DataError if a folder has another run."""
    data = trainings[0].config
    splits = load_splits(data, callbacks.on_progress, callbacks.warn)
    rows: dict[str, list[Row]] = {entry.name: [] for entry in TABLE1}
    for training in trainings:
        quarantine_damaged(training, callbacks)
        check_run(training, splits)
        if not training.is_finished and not training.has_diverged:
            train(training, splits, callbacks)
        for entry in TABLE1:
            if entry.model == training.model:
                rows[entry.name].append(measure_training(config, entry, training, callbacks))
    return [average_seeds(seed_rows) for seed_rows in rows.values()]


def measure_training(config: CompareConfig, entry: Entry, training: Training, callbacks: CompareCallbacks) -> Row:
    """The row of one seed. A run that diverged for good is counted and not sampled."""
    if training.has_diverged:
        events = events_in(read_lines(training.run_dir / "metrics.jsonl"))
        path = next(reversed(training.checkpoints), None)
        origin = Origin(training.name, checkpoint=path, settings=training.config.to_dict())
        scores = {"divergences": float(len(events)), "runs_lost": 1.0}
        return Row(entry.name, scores, notes=(f"{training.name} diverged for good",), origins=(origin,))
    mode_config = replace(config, mode=entry.mode)
    (row,) = measure_checkpoint(mode_config, training.name, training.checkpoints[-1], callbacks)
    return replace(row, name=entry.name, scores={**row.scores, "runs_lost": 0.0})


def average_seeds(rows: Sequence[Row]) -> Row:
    """Mean and standard deviation of the scores that all seeds have; divergences and lost runs are summed. Lost runs
    have no other scores. A single row is returned as it is."""
    if len(rows) == 1:
        return rows[0]
    valid = [row for row in rows if not row.scores.get("runs_lost")]
    columns = [name for name in COLUMNS if valid and all(name in row.scores for row in valid) and name not in SUMMED]
    values = {name: [row.scores[name] for row in valid] for name in columns}
    sums = {name: sum(row.scores.get(name, 0.0) for row in rows) for name in SUMMED}
    notes = dict.fromkeys(note for row in rows for note in row.notes)
    if len(valid) < len(rows):
        notes[f"{rows[0].name}: {len(valid)} of {len(rows)} seeds, because the others diverged"] = None
    return Row(
        rows[0].name,
        {name: statistics.fmean(scores) for name, scores in values.items()} | sums,
        {name: protocol for name in columns if (protocol := merge_protocols(valid, name))},
        notes=tuple(notes),
        spreads={name: statistics.stdev(scores) for name, scores in values.items()} if len(valid) > 1 else {},
        seeds=len(valid),
        origins=tuple(origin for row in rows for origin in row.origins),
    )


def merge_protocols(rows: Sequence[Row], column: str) -> Protocol:
    """The protocol that all rows share; else all of them, so that the mean is ranked only with a mean of the same."""
    protocols = [row.protocols.get(column, {}) for row in rows]
    same = all(protocol == protocols[0] for protocol in protocols)
    return protocols[0] if same else {f"of seed {seed}": protocol for seed, protocol in enumerate(protocols)}


def describe_trainings(trainings: Sequence[Training], samples: int) -> list[str]:
    """Downloads, one line per run, and the cost of all runs and samples. A pass takes one image forward and backward
    through the network. Raises ConfigError as `reproduce_table1` does."""
    datasets = dict.fromkeys(training.config.dataset for training in trainings if not training.config.data)
    lines = [line for name in datasets if (line := describe_download(name))]
    lines += map(describe_training, trainings)
    costs = [estimate_passes(training.config) for training in trainings]
    if None not in costs:
        lines.append(f"{len(trainings)} trainings, {sum(filter(None, costs)):,.3f} M passes in all")
    configs = {training.model: training.config for training in trainings}
    plans = [(entry.name, SamplePlan.from_config(configs[entry.model], entry.mode)) for entry in TABLE1]
    passes = ", ".join(f"{plan.gradient_steps} ({name})" for name, plan in plans)
    return [*lines, f"{samples} samples per row and seed, passes per sample: {passes}"]


def describe_training(training: Training) -> str:
    """Network, length, cost and state of a run."""
    check_run(training)
    config, checkpoints = training.config, training.checkpoints
    cost = estimate_passes(config)
    length = f"{config.steps} steps" if config.steps else f"{config.epochs:g} epochs"
    total = f", {cost:,.3f} M passes in all" if cost else ""
    state = f"at step {paths.parse_step(checkpoints[-1])}" if checkpoints else "to do"
    state = "done" if training.is_finished else "diverged" if training.has_diverged else state
    return (
        f"{training.name}: {config.architecture}, {length} of {config.batch_size} images, "
        f"{passes_per_image(config)} passes per image{total}; {state}"
    )


def estimate_passes(config: TrainConfig) -> float | None:
    """Millions of passes of a training; None if its length is unknown."""
    steps = count_steps(config)
    return steps * config.batch_size * passes_per_image(config) / 1e6 if steps else None


def passes_per_image(config: TrainConfig) -> int:
    """In one training step: of the attack, the chain, and the update (on x_adv, and for energies on x and x_q)."""
    energy = bool(config.px_weight)
    return config.pgd_steps * config.attacks + config.sgld_steps * energy + 1 + 2 * energy
