"""What a run measures and draws: energies, accuracies, sample grids, and the summary at its end."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rjem_cli.config.fields import format_epsilon
from rjem_cli.engine.accuracy import Accuracy, accuracy, evenly_spaced
from rjem_cli.engine.attacks.robustness import AttackPlan, AttackSetup, attack_dataset, evaluate_clean
from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.data.images import Splits, spread_indices, to_model
from rjem_cli.engine.data.png import png_bytes
from rjem_cli.engine.gradients import value_and_grad
from rjem_cli.engine.models.energy import energy
from rjem_cli.engine.models.eval_images import AttackDataset
from rjem_cli.engine.sampling.generate import draw_sample_grid
from rjem_cli.engine.sampling.pipeline import SamplePlan
from rjem_cli.engine.training.checkpointing import best_checkpoint
from rjem_cli.engine.training.metrics_log import events_in
from rjem_cli.engine.training.progress import TrainingCallbacks
from rjem_cli.engine.training.trainer import Trainer
from rjem_cli.files import write_atomically
from rjem_cli.paths import checkpoints_in

VALIDATION_IMAGES = 2000
GRID_PER_CLASS = 8
TEST_EPS = 0.1  # of the robust accuracy, model units: the paper's training attack
TEST_PLAN = AttackPlan(steps=15, start="image")
TEST_BATCH = 128


def compute_energies(trainer: Trainer) -> tuple[dict[str, float], dict[str, Tensor]]:
    """(means for metrics.jsonl, E(x) (B,) of `data` and of `chains` of the replay buffer, on the host). Both are empty
    without a p(x) term. `input_grad_norm` is the mean L2 norm of dE/dx on data; the literature's R1 penalty is the mean
    of its square."""
    if trainer.buffer is None:
        return {}, {}
    frozen = trainer.frozen.refresh(trainer.model)
    _, data_B, gradient = value_and_grad(frozen, energy, to_model(trainer.monitor_images.pixels))
    with torch.no_grad():
        chains_B = energy(frozen(trainer.buffer.images[: trainer.batch_size]))
    energies = {"data": data_B.cpu(), "chains": chains_B.cpu()}
    parts = (*energies.values(), gradient.flatten(1).norm(dim=1).cpu())
    names = ("energy_data", "energy_buffer", "input_grad_norm")
    return {name: float(part.mean()) for name, part in zip(names, parts)}, energies


def val_accuracy(trainer: Trainer) -> float | None:
    """Accuracy of the EMA network on the validation images; None if there are none."""
    images = evenly_spaced(trainer.splits.val, VALIDATION_IMAGES)
    if not len(images):
        return None
    model = trainer.runtime.scoring().frozen(trainer.sampling_model())
    return accuracy(model, images, trainer.runtime.device).value


def draw_samples(trainer: Trainer, path: Path, modes: tuple[str, ...], callbacks: TrainingCallbacks) -> None:
    """Write a figure with samples in these modes. Raises Stopped, and RjemError if it cannot be written."""
    assert trainer.prior is not None, "samples need a prior"
    figure = draw_sample_grid(
        trainer.runtime.frozen(trainer.sampling_model()),
        trainer.prior,
        [SamplePlan.from_config(trainer.config, mode) for mode in modes],
        GRID_PER_CLASS,
        trainer.config.seed,
        lambda done, total: callbacks.progress("drawing samples", done, total),
    )
    write_atomically(path, png_bytes(figure))


def summarize(trainer: Trainer, callbacks: TrainingCallbacks) -> dict[str, Any]:
    """Evaluate the EMA network on test images: accuracies with 95% intervals and the protocol of each. Raises
    Stopped."""
    splits, runtime = trainer.splits, trainer.runtime
    model = runtime.scoring().frozen(trainer.sampling_model())
    indices = spread_indices(len(splits.test), trainer.config.eval_limit)
    dataset = AttackDataset(splits.test.subset(indices), indices, None, trainer.config.seed)
    setup = AttackSetup(model, model, TEST_PLAN, dataset, runtime.device, BatchSizer(TEST_BATCH, callbacks.warn))
    clean = evaluate_clean(setup)
    (attacked,) = attack_dataset(
        setup, clean, [TEST_EPS], lambda phase, done, total, _: callbacks.progress("attacking test images", done, total)
    )
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
