"""The table at the end of a run: accuracies with intervals, each with its protocol."""

from __future__ import annotations

from typing import Any

from rjem_cli.config.fields import format_epsilon
from rjem_cli.engine.attacks.robustness import AttackPlan, AttackSetup, attack_dataset, evaluate_clean
from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.data.images import Splits, spread_indices
from rjem_cli.engine.metrics.accuracy import Accuracy
from rjem_cli.engine.models.eval_images import AttackDataset
from rjem_cli.engine.training.checkpointing import best_checkpoint
from rjem_cli.engine.training.metrics_log import events_in
from rjem_cli.engine.training.progress import TrainingCallbacks
from rjem_cli.engine.training.trainer import Trainer
from rjem_cli.paths import checkpoints_in

TEST_EPS = 0.1  # of the robust accuracy, model units: the paper's training attack
TEST_PLAN = AttackPlan(steps=15, start="image")
TEST_BATCH = 128


def summarize(trainer: Trainer, callbacks: TrainingCallbacks) -> dict[str, Any]:
    """Evaluate the EMA network on test images. Raises Stopped."""
    splits, runtime = trainer.splits, trainer.runtime
    model = runtime.scoring().frozen(trainer.sampling_model())
    indices = spread_indices(len(splits.test), trainer.config.eval_limit)
    dataset = AttackDataset(splits.test.subset(indices), indices, None, trainer.config.seed)
    setup = AttackSetup(model, TEST_PLAN, dataset, runtime.device, BatchSizer(TEST_BATCH, callbacks.warn))

    def on_progress(phase: str, done: int, total: int, state: str) -> None:
        callbacks.progress("attacking test images", done, total)

    clean = evaluate_clean(setup)
    (attacked,) = attack_dataset(setup, clean, [TEST_EPS], on_progress)
    correct = Accuracy(int(clean.correct.sum()), len(dataset))
    robust = describe_accuracy(attacked.robust_accuracy(clean), splits)
    steps = f"{TEST_PLAN.steps} steps, from the image, best iterate, 1 restart"
    best = best_checkpoint(checkpoints_in(trainer.run_dir))
    return {
        "step": trainer.step,
        "test_accuracy": describe_accuracy(correct, splits),
        "robust_accuracy": {**robust, "attack": f"PGD linf, eps {format_epsilon(TEST_EPS, 'linf')}, {steps}"},
        "metrics": trainer.metrics.last,
        "best_checkpoint": str(best) if best else None,
        "divergences": events_in(trainer.metrics.lines),
        "device": runtime.describe(),
    }


def describe_accuracy(accuracy: Accuracy, splits: Splits) -> dict[str, Any]:
    return {**accuracy.to_dict(), "dataset": f"{splits.name}:test", "dataset_size": len(splits.test)}
