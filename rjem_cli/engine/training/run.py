"""A run from its folder to its summary: start or resume, train, measure, leave a table and a picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rjem_cli.config import SAMPLE_MODES, TrainConfig
from rjem_cli.engine.data.images import Splits, spread_indices
from rjem_cli.engine.evaluation.accuracy import Accuracy
from rjem_cli.engine.evaluation.attack import AttackSet, attack_images, look_at_clean
from rjem_cli.engine.evaluation.search import AttackPlan
from rjem_cli.engine.model.checkpoint import read_info
from rjem_cli.engine.room import Room
from rjem_cli.engine.runtime import Runtime
from rjem_cli.engine.training.checkpoints import best_of
from rjem_cli.engine.training.loop import start, train_to_end
from rjem_cli.engine.training.progress import TRAINING, Progress, Stopped
from rjem_cli.engine.training.trainer import Trainer
from rjem_cli.errors import ConfigError, DataError
from rjem_cli.files import locked, write_atomically
from rjem_cli.knobs import describe_epsilon, flag_name
from rjem_cli.paths import checkpoints_in, step_of

TEST_EPS = 0.1  # of the robust accuracy in a run's table, model units: the paper's training attack
TEST_PLAN = AttackPlan(steps=15, start="image")
TEST_BATCH = 128
STATE_KNOBS = ("depth", "width", "norm_layer", "optimizer")  # what shapes a state


@dataclass(frozen=True)
class RunResult:
    """What a run ended with. `finished` is False when it was stopped; it can then be resumed."""

    checkpoint: Path
    finished: bool
    grid: Path | None
    summary: dict[str, Any]


def run_training(
    config: TrainConfig,
    splits: Splits,
    runtime: Runtime,
    run_dir: Path,
    *,
    resume: Path | None,
    watch: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> RunResult:
    """Train in `run_dir`, from its checkpoint `resume` on where one is given; after the last step, measure the model
    and write summary.json and samples/grid.png. `should_stop` is asked after each step, and wherever `watch` is called.

    Raises DivergedError, ConfigError or DataError (settings or a state that do not fit) and RjemError (what cannot be
    written).
    """

    def watch_or_stop(progress: Progress) -> None:
        watch(progress)
        if progress.phase != TRAINING and should_stop():
            raise Stopped

    ranks = runtime.ranks
    with ranks.opened_by_first(lambda: locked(run_dir, wait=False)):
        trainer = Trainer(config, splits, runtime, run_dir, watch_or_stop)
        if resume:
            ranks.jointly(lambda: check_same_training(resume, trainer))
        start(trainer, resume)
        checkpoint = train_to_end(trainer, should_stop)
        try:
            if ranks.agree(should_stop()):
                raise Stopped
            summary, grid = ranks.from_first(lambda: conclude(trainer, splits, runtime))
        except Stopped:
            return RunResult(checkpoint, False, None, {"step": step_of(checkpoint), "steps": trainer.steps})
        return RunResult(checkpoint, True, grid, summary)


def conclude(trainer: Trainer, splits: Splits, runtime: Runtime) -> tuple[dict[str, Any], Path]:
    """The table and the picture of a run's end. Raises Stopped."""
    summary = {"step": trainer.step, **summarise(trainer, splits, runtime)}
    write_atomically(trainer.run_dir / "summary.json", json.dumps(summary, indent=2).encode())
    grid = trainer.run_dir / "samples" / "grid.png"
    trainer.draw_samples(grid, SAMPLE_MODES)
    return summary, grid


def check_same_training(checkpoint: Path, trainer: Trainer) -> None:
    """Raises DataError where the checkpoint's images were others, ConfigError for settings that do not fit it."""
    name, before, now = trainer.run_dir.name, read_info(checkpoint), trainer.info
    if before.data_digest != now.data_digest:
        raise DataError(f"{name} was trained on other images than {now.data_name} is now; give those with --data")
    check_settings(name, before.config, now.config)
    if before.step > trainer.steps:
        raise ConfigError(
            f"{name} is at step {before.step} already, and --steps or --epochs ask for {trainer.steps}; give more"
        )


def check_settings(name: str, before: TrainConfig, now: TrainConfig) -> None:
    """Of a run by this name. Raises ConfigError for one that its state cannot go on with."""
    for knob in STATE_KNOBS:
        was, wanted = getattr(before, knob), getattr(now, knob)
        if was != wanted:
            flag = flag_name(knob)
            raise ConfigError(f"{flag} {wanted}: {name} was trained with {flag} {was}; resume with that")


def summarise(trainer: Trainer, splits: Splits, runtime: Runtime) -> dict[str, Any]:
    """Accuracies with intervals, each with its protocol, and the energies of the last metrics line."""
    model = runtime.scoring().frozen(trainer.sampling_model())
    indices = spread_indices(len(splits.test), trainer.config.eval_limit)
    chosen = AttackSet(splits.test.subset(indices), indices, None, trainer.config.seed)
    room = Room(TEST_BATCH, trainer.warn)
    clean = look_at_clean(model, TEST_PLAN, chosen, runtime.device, room)
    (attacked,) = attack_images(
        model,
        TEST_PLAN,
        chosen,
        clean,
        [TEST_EPS],
        device=runtime.device,
        room=room,
        report=lambda done, total, text: trainer.watch(Progress("attacking test images", done, total)),
    )
    labels = chosen.images.labels
    right = Accuracy(int((clean.predictions == labels).sum()), len(labels))
    robust = describe_accuracy(attacked.robust(clean, labels), splits)
    steps = f"{TEST_PLAN.steps} steps, from the image, best iterate, 1 restart"
    return {
        "test_accuracy": describe_accuracy(right, splits),
        "robust_accuracy": {**robust, "attack": f"PGD linf, eps {describe_epsilon(TEST_EPS, 'linf')}, {steps}"},
        "metrics": trainer.metrics.last,
        "best_checkpoint": str(best) if (best := best_of(checkpoints_in(trainer.run_dir))) else None,
        "divergences": trainer.metrics.events,
        "device": runtime.describe(),
    }


def describe_accuracy(found: Accuracy, splits: Splits) -> dict[str, Any]:
    return {**found.to_dict(), "dataset": f"{splits.name}:test", "dataset_size": len(splits.test)}
