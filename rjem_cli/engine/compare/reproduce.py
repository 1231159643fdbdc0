"""The paper's Table 1 again: its three models with one network, seed and budget, sampled as it sampled them. Each step
is kept, so a stop loses at most one."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rjem_cli.config import CompareConfig, TrainConfig
from rjem_cli.engine.compare.cached import Work, read_cache
from rjem_cli.engine.compare.measure import run_rows
from rjem_cli.engine.compare.rows import COLUMNS, Origin, Protocol, Row
from rjem_cli.engine.compare.table1 import TABLE1, Entry
from rjem_cli.engine.data.downloads import DATASET_INFO, DOWNLOADED, files_of, is_downloaded
from rjem_cli.engine.data.images import Splits
from rjem_cli.engine.data.load import load_splits
from rjem_cli.engine.models.checkpoint import read_info
from rjem_cli.engine.runtime import start_runtime
from rjem_cli.engine.sampling.pipeline import SamplePlan
from rjem_cli.engine.training.metrics_log import events_in, read_lines
from rjem_cli.engine.training.progress import TRAINING, TrainingCallbacks, TrainingProgress
from rjem_cli.engine.training.run import run_training
from rjem_cli.engine.training.schedule import total_steps
from rjem_cli.errors import ConfigError, DataError, DivergedError
from rjem_cli.paths import checkpoints_in, parse_step

FREE = {"run", "data", "test_data", "device", "eval_limit"}  # settings that a run of the table may have otherwise
SUMMED = ("divergences", "runs_lost")


@dataclass(frozen=True)
class Training:
    """One run of the reproduction."""

    model: str
    config: TrainConfig
    run_dir: Path

    @property
    def checkpoints(self) -> list[Path]:
        return checkpoints_in(self.run_dir)


def check_settings(training: Training) -> None:
    """Raises ConfigError where the folder holds a run of other settings, which is no part of this table."""
    if not training.checkpoints:
        return
    before, now = read_info(training.checkpoints[-1]).config.to_dict(), training.config.to_dict()
    for name in now:
        if name not in FREE and before[name] != now[name]:
            raise ConfigError(
                f"{training.run_dir.name} was trained with {name} {before[name]}, this table's has {now[name]}; "
                f"remove {training.run_dir}, and it is trained anew"
            )


def check_images(training: Training, splits: Splits) -> None:
    """Raises DataError where the folder holds a run on other images."""
    if training.checkpoints and read_info(training.checkpoints[-1]).data_digest != splits.train.digest():
        raise DataError(
            f"{training.run_dir.name} was trained on other images than {splits.name} is now; "
            f"remove {training.run_dir}, and it is trained anew"
        )


def is_finished(training: Training) -> bool:
    """Trained to its end, and measured."""
    summary, saved = read_cache(training.run_dir / "summary.json"), training.checkpoints
    return summary is not None and bool(saved) and summary.get("step") == parse_step(saved[-1])


def has_diverged(training: Training) -> bool:
    """Beyond recovery; it would again."""
    lines = read_lines(training.run_dir / "metrics.jsonl")
    return bool(lines) and "event" in lines[-1] and lines[-1]["rate_scale"] is None


def train(training: Training, splits: Splits, work: Work) -> None:
    """Begin, or go on from where an earlier call was stopped, until it ends or diverges beyond recovery."""
    phase = f"training {training.run_dir.name}"

    def on_progress(progress: TrainingProgress) -> None:
        work.quietly(phase if progress.phase == TRAINING else progress.phase, progress.step, progress.steps)

    callbacks = TrainingCallbacks(on_progress, work.say, work.warn, work.stop)
    try:
        result = run_training(
            training.config,
            splits,
            start_runtime(training.config),
            training.run_dir,
            resume=bool(training.checkpoints),
            callbacks=callbacks,
        )
    except DivergedError as error:
        work.warn(str(error))
        return
    if not result.finished:
        work.end(phase)


def reproduced(config: CompareConfig, trainings: Sequence[Training], work: Work) -> list[Row]:
    """The measured rows, each the mean over its seeds. `trainings` holds every model once for each seed, all on the
    same images. Raises ConfigError or DataError where a folder holds another run than the table's."""
    data = trainings[0].config
    splits = load_splits(data, lambda done, total: work.watch(f"fetching {data.dataset}", done, total), work.warn)
    found: dict[str, list[Row]] = {entry.name: [] for entry in TABLE1}
    for training in trainings:
        check_settings(training)
        check_images(training, splits)
        if not is_finished(training) and not has_diverged(training):
            train(training, splits, work)
        for entry in TABLE1:
            if entry.model == training.model:
                found[entry.name].append(row_of(config, entry, training, work))
    return [over_seeds(rows) for rows in found.values()]


def row_of(config: CompareConfig, entry: Entry, training: Training, work: Work) -> Row:
    """Of one seed. A run that diverged beyond recovery has no samples, and is counted."""
    name = training.run_dir.name
    if has_diverged(training):
        events = float(len(events_in(read_lines(training.run_dir / "metrics.jsonl"))))
        path = next(reversed(training.checkpoints), None)
        origin = Origin(name, checkpoint=path, settings=training.config.to_dict())
        counts = {"divergences": events, "runs_lost": 1.0}
        return Row(entry.name, counts, notes=(f"{name} diverged beyond recovery",), origins=(origin,))
    (row,) = run_rows(replace(config, mode=entry.mode), name, training.checkpoints[-1], work)
    return replace(row, name=entry.name, scores={**row.scores, "runs_lost": 0.0})


def over_seeds(rows: Sequence[Row]) -> Row:
    """Mean and standard deviation over seeds of the scores that all of them have, but of runs that were lost; events
    are summed over all. A row of one seed stays as it is."""
    if len(rows) == 1:
        return rows[0]
    whole = [row for row in rows if not row.scores.get("runs_lost")]
    shared = [name for name in COLUMNS if whole and all(name in row.scores for row in whole) and name not in SUMMED]
    values = {name: [row.scores[name] for row in whole] for name in shared}
    sums = {name: sum(row.scores.get(name, 0.0) for row in rows) for name in SUMMED}
    notes = dict.fromkeys(note for row in rows for note in row.notes)
    if len(whole) < len(rows):
        notes[f"{rows[0].name} is of the {len(whole)} of {len(rows)} seeds that did not diverge"] = None
    return Row(
        rows[0].name,
        {name: statistics.fmean(each) for name, each in values.items()} | sums,
        {name: protocol for name in shared if (protocol := shared_protocol(whole, name))},
        notes=tuple(notes),
        spreads={name: statistics.stdev(each) for name, each in values.items()} if len(whole) > 1 else {},
        seeds=len(whole),
        origins=tuple(origin for row in rows for origin in row.origins),
    )


def shared_protocol(rows: Sequence[Row], column: str) -> Protocol:
    """That of all rows; where they differ, what only a row of the same differences can be compared with."""
    protocols = [row.protocols.get(column, {}) for row in rows]
    same = all(protocol == protocols[0] for protocol in protocols)
    return protocols[0] if same else {f"of seed {seed}": protocol for seed, protocol in enumerate(protocols)}


def described(trainings: Sequence[Training], samples: int) -> list[str]:
    """What is downloaded, a line a run, and what all of them and the samples cost. A pass is one image forward and
    backward through the network, in a gradient step or an update. Raises ConfigError as `reproduced` does."""
    costs = [cost_of(training.config) for training in trainings]
    total = [] if None in costs else [f"{len(trainings)} trainings, {sum(filter(None, costs)):,.3f} M passes in all"]
    configs = {training.model: training.config for training in trainings}
    each = [
        f"{SamplePlan.from_config(configs[entry.model], entry.mode).gradient_steps} ({entry.name})" for entry in TABLE1
    ]
    sampling = f"{samples} samples a row and seed, passes a sample: {', '.join(each)}"
    return [*described_downloads(trainings), *map(described_training, trainings), *total, sampling]


def described_downloads(trainings: Sequence[Training]) -> list[str]:
    wanted = dict.fromkeys(training.config.dataset for training in trainings if not training.config.data)
    absent = [name for name in wanted if name in DOWNLOADED and not is_downloaded(name)]
    return [f"{name} is downloaded first, {sum(file.size for file in files_of(name)) / 1e6:.0f} MB" for name in absent]


def described_training(training: Training) -> str:
    """Its length, what it costs, and where it stands."""
    check_settings(training)
    config, saved, cost = training.config, training.checkpoints, cost_of(training.config)
    length = f"{config.steps} steps" if config.steps else f"{config.epochs:g} epochs"
    total = f", {cost:,.3f} M passes in all" if cost else ""
    at = f"at step {parse_step(saved[-1])}" if saved else "to do"
    at = "done" if is_finished(training) else "diverged" if has_diverged(training) else at
    return (
        f"{training.run_dir.name}: WRN-{config.depth}-{config.width}, {length} of {config.batch_size} images, "
        f"{passes_an_image(config)} passes an image{total}; {at}"
    )


def cost_of(config: TrainConfig) -> float | None:
    """Millions of passes; None where its length is not known."""
    steps = known_steps(config)
    return steps * config.batch_size * passes_an_image(config) / 1e6 if steps else None


def known_steps(config: TrainConfig) -> int | None:
    """Its length; None for epochs of images that would have to be counted first."""
    if config.data or config.dataset not in DATASET_INFO:
        return config.steps
    return total_steps(config, DATASET_INFO[config.dataset].split(config.val_fraction)[0])


def passes_an_image(config: TrainConfig) -> int:
    """Of one training step: the attack's, the chain's, and the update's, on x_adv and for energies on x and x_q."""
    energy = bool(config.px_weight)
    return config.pgd_steps * config.attacks + config.sgld_steps * energy + 1 + 2 * energy
