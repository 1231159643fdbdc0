"""Training a small network on digits in each precision, from the same seed: losses, accuracies and divergences."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import fmean

from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.data.images import Splits
from rjem_cli.engine.data.load import load_digit_splits
from rjem_cli.engine.models.prior import ClassGaussianPrior, fit_prior
from rjem_cli.engine.runtime import start_runtime
from rjem_cli.engine.training.evaluation import val_accuracy
from rjem_cli.engine.training.guard import Divergence
from rjem_cli.engine.training.trainer import Trainer
from tests.benchmarks.gpu.parts import Bench, Row

POINTS = 4  # of a loss curve in the table; gpu.json has all
QUICKSTART = {  # without the flags of the run loop
    **{"dataset": "shifted-digits", "crop_pad": 0, "flip": False, "depth": 10, "reinit_prob": 0.5},
    **{"optimizer": "adam", "lr": 0.002, "lr_schedule": "constant", "weight_decay": 0.0, "max_grad_norm": 1.0},
    **{"warmup_steps": 50, "ema_decay": 0.99},
}


def run(bench: Bench) -> None:
    splits = load_digit_splits(0.1, shifted=True)
    prior = fit_prior(splits.train)
    for norm in bench.sizes.norms:
        for precision in dict.fromkeys(("fp32", *bench.precisions, "fp16")):
            labels = {"norm": norm, "precision": precision}
            bench.measure(labels, partial(train, bench, splits, prior, norm, precision))


def train(bench: Bench, splits: Splits, prior: ClassGaussianPrior, norm: str, precision: str) -> Row:
    """Means of the loss over equal parts of the run, and where it diverged."""
    sizes = bench.sizes
    config = TrainConfig(
        **QUICKSTART,
        **{
            "width": 2 if bench.on_cuda else 1,
            "norm_layer": norm,
            "precision": precision,
            "steps": sizes.training_steps,
        },
        **{"batch_size": 64 if sizes.samples > 16 else 16, "pgd_steps": min(5, sizes.pgd_steps)},
        **{"sgld_steps": sizes.sgld_steps, "buffer_size": min(1000, sizes.buffer_size), "device": str(bench.device)},
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, splits, start_runtime(config), Path(folder), lambda: prior)
        losses, diverged, seconds = train_steps(trainer, sizes.training_steps)
        accuracy = val_accuracy(trainer)
    size = max(1, sizes.training_steps // POINTS)
    means = {
        f"loss, steps {start + 1}-{start + size}": fmean(losses[start : start + size])
        for start in range(0, len(losses) - size + 1, size)
    }
    return {
        **means,
        "diverged": diverged,
        "accuracy %": 100 * (accuracy or 0.0),
        "ms/step": 1000 * seconds / max(1, len(losses)),
        "losses": {"all": losses},
    }


def train_steps(trainer: Trainer, steps: int) -> tuple[list[float], str, float]:
    """(losses, the first divergence or "no", seconds). The guard checks the means of 20 steps, as a run does."""
    losses: list[float] = []
    started = time.monotonic()
    try:
        for step in range(steps):
            scalars = trainer.train_step()
            losses.append(float(scalars["loss"]))
            if step % 20 == 19:
                trainer.guard.check_means({name: float(value) for name, value in scalars.items()})
    except Divergence as error:
        return losses, f"at step {len(losses)}: {error}", time.monotonic() - started
    return losses, "no", time.monotonic() - started
