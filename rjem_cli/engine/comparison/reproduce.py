"""The paper's Table 1 again: its three models with one network, seed and budget, sampled as it sampled them. Each step
is kept, so a stop loses at most one."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rjem_cli.config import CompareConfig, TrainConfig
from rjem_cli.engine.chains.pipeline import plan_of
from rjem_cli.engine.comparison.measure import Work, read_kept, run_rows
from rjem_cli.engine.comparison.rows import COLUMNS, Row
from rjem_cli.engine.comparison.table1 import TABLE1
from rjem_cli.engine.data.load import load_splits
from rjem_cli.engine.runtime import start_runtime
from rjem_cli.engine.training.checkpoints import newest_whole
from rjem_cli.engine.training.metrics import read_lines
from rjem_cli.engine.training.progress import TRAINING, Progress
from rjem_cli.engine.training.run import run_training
from rjem_cli.errors import DivergedError
from rjem_cli.paths import checkpoints_in, step_of


@dataclass(frozen=True)
class Training:
    """One run of the reproduction."""

    model: str
    config: TrainConfig
    run_dir: Path


def is_finished(training: Training) -> bool:
    """Trained to its end, and measured."""
    summary, saved = read_kept(training.run_dir / "summary.json"), checkpoints_in(training.run_dir)
    return summary is not None and bool(saved) and summary.get("step") == step_of(saved[-1])


def has_diverged(training: Training) -> bool:
    """Beyond recovery; it would again."""
    lines = read_lines(training.run_dir / "metrics.jsonl")
    return bool(lines) and "event" in lines[-1] and lines[-1]["rate_scale"] is None


def trained(training: Training, work: Work) -> Path | None:
    """The run's last checkpoint: as an earlier call left it, else trained, or trained on. None for one that diverged
    beyond recovery."""
    if is_finished(training):
        return checkpoints_in(training.run_dir)[-1]
    if has_diverged(training):
        return None
    config = training.config
    phase = f"training {training.run_dir.name}"

    def watch(progress: Progress) -> None:
        if progress.note:
            work.say(progress.note)
        else:
            work.quietly(phase if progress.phase == TRAINING else progress.phase, progress.step, progress.steps)

    splits = load_splits(config, lambda done, total: work.watch(f"fetching {config.dataset}", done, total), work.say)
    newest, _ = newest_whole(training.run_dir)
    try:
        result = run_training(
            config,
            splits,
            start_runtime(config.device, config.precision),
            training.run_dir,
            resume=newest,
            watch=watch,
            should_stop=work.stop,
        )
    except DivergedError as error:
        work.say(str(error))
        return None
    if not result.finished:
        work.end(phase)
    return result.checkpoint


def reproduced(config: CompareConfig, trainings: Sequence[Training], work: Work) -> list[Row]:
    """The measured rows, each the mean over its seeds. `trainings` holds every model once for each seed."""
    found: dict[str, list[Row]] = {entry.name: [] for entry in TABLE1}
    for training in trainings:
        path = trained(training, work)
        for entry in TABLE1:
            if entry.model != training.model:
                continue
            if path is None:
                found[entry.name].append(Row(entry.name, {}, notes=(f"{training.run_dir.name} diverged",)))
            else:
                (row,) = run_rows(replace(config, mode=entry.mode), training.run_dir.name, path, work)
                found[entry.name].append(replace(row, name=entry.name))
    return [over_seeds(rows) for rows in found.values()]


def over_seeds(rows: Sequence[Row]) -> Row:
    """Mean and standard deviation over seeds of the scores that all of them have; a row of one seed as it is."""
    first, notes = rows[0], tuple(dict.fromkeys(note for row in rows for note in row.notes))
    if len(rows) == 1:
        return first
    whole = [row for row in rows if row.scores] or list(rows)
    if len(whole) < len(rows):
        notes = (*notes, f"{first.name} is of the {len(whole)} of {len(rows)} seeds that did not diverge")
    shared = [name for name in COLUMNS if all(name in row.scores for row in whole)]
    values = {name: [row.scores[name] for row in whole] for name in shared}
    return Row(
        first.name,
        {name: statistics.fmean(each) for name, each in values.items()},
        {name: {"seeds": len(whole), **protocol} for name, protocol in whole[0].protocols.items() if name in shared},
        notes=notes,
        spreads={name: statistics.stdev(each) for name, each in values.items()} if len(whole) > 1 else {},
        origins=tuple(origin for row in whole for origin in row.origins),
    )


def described(trainings: Sequence[Training], samples: int) -> list[str]:
    """A line a run: its length, what it costs, and where it stands; and one of what samples cost. A pass is one image
    forward and backward through the network, in a gradient step or an update."""
    lines = []
    for training in trainings:
        config, saved = training.config, checkpoints_in(training.run_dir)
        passes = passes_an_image(config)
        length = f"{config.steps} steps" if config.steps else f"{config.epochs:g} epochs"
        total = f", {config.steps * config.batch_size * passes / 1e6:.3g} M in all" if config.steps else ""
        at = f"at step {step_of(saved[-1])}" if saved else "to do"
        at = "done" if is_finished(training) else "diverged" if has_diverged(training) else at
        lines.append(
            f"{training.run_dir.name}: WRN-{config.depth}-{config.width}, {length} of {config.batch_size} images, "
            f"{passes} passes an image{total}; {at}"
        )
    configs = {training.model: training.config for training in trainings}
    each = [f"{plan_of(configs[entry.model], entry.mode).gradient_steps} ({entry.name})" for entry in TABLE1]
    return [*lines, f"{samples} samples a row and seed, passes a sample: {', '.join(each)}"]


def passes_an_image(config: TrainConfig) -> int:
    """Of one training step: the attack's, the chain's, and the update's on images and chains."""
    energy = bool(config.px_weight)
    return config.pgd_steps * config.attacks + config.sgld_steps * energy + 1 + energy
