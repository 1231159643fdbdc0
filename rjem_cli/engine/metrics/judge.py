"""The judge: a plain classifier of the reference's data set, trained once and kept by what it was trained on.

Its features stand in for Inception's where those make no sense (8x8 digits) or cannot be had. The scores are then
called fd_judge, is_judge and so on, never FID. A judge is never the model under test.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rjem_cli.config import TrainConfig
from rjem_cli.engine.callbacks import noop
from rjem_cli.engine.data.images import Splits
from rjem_cli.engine.metrics.accuracy import accuracy
from rjem_cli.engine.models.checkpoint import Checkpoint, load_checkpoint
from rjem_cli.engine.runtime import Runtime
from rjem_cli.engine.training.progress import TrainingCallbacks
from rjem_cli.engine.training.run import Run
from rjem_cli.engine.training.trainer import Trainer
from rjem_cli.errors import DataError, RjemError
from rjem_cli.files import locked, write_atomically
from rjem_cli.paths import checkpoints_in, judges_dir

VERSION = 1  # of the recipe below
WIDTH = 2
JUDGE_FEATURES = 64 * WIDTH
EPOCHS, BATCH_SIZE, FEWEST_STEPS = 5, 128, 500
MIRRORED = {
    "cifar10",
    "cifar100",
    "fashion-mnist",
    "stl10",
}  # data sets in which a mirrored image is of the same class; digits are none


@dataclass(frozen=True)
class Judge:
    """A checkpoint, and what its makers must say with every score: its accuracy on the test split."""

    checkpoint: Checkpoint
    test_accuracy: dict[str, Any] | None


def judge_config(splits: Splits) -> TrainConfig:
    """A small plain network: neither attack nor energy."""
    steps = max(FEWEST_STEPS, -(-EPOCHS * len(splits.train) // BATCH_SIZE))
    mirrored = splits.name in MIRRORED
    return TrainConfig(
        depth=10,
        width=WIDTH,
        norm_layer="batch",
        pgd_steps=0,
        px_weight=0.0,
        crop_pad=4 if mirrored else 0,
        flip=mirrored,
        batch_size=BATCH_SIZE,
        steps=steps,
        optimizer="adam",
        lr=2e-3,
        lr_schedule="cosine",
        weight_decay=0.0,
        warmup_steps=100,
        ema_decay=0.99,
        log_every=100,
        checkpoint_every=1000,
        sample_every=steps,
        val_fraction=0.0,
        seed=0,
    )


def judge_folder(splits: Splits) -> Path:
    """Its name is made of the images and of the recipe."""
    decisive = [VERSION, splits.train.digest(), splits.test.digest(), judge_config(splits).to_dict()]
    return judges_dir() / hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:32]


def trained_before(splits: Splits, device: torch.device) -> Judge | None:
    """The judge of this data set, if there is one that can be read."""
    with contextlib.suppress(IndexError, RjemError):
        path = checkpoints_in(judge_folder(splits))[-1]
        accuracy = noted_accuracy(path)
        return None if accuracy is None else Judge(load_checkpoint(path, device), accuracy)
    return None


def noted_accuracy(path: Path) -> dict[str, Any] | None:
    """Of a judge's checkpoint: what was measured on the test split when it was trained. None for one of somebody
    else's."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        noted = json.loads((path.parent.parent / "judge.json").read_bytes())["test_accuracy"]
        return noted if isinstance(noted["value"], float) and isinstance(noted["of"], int) else None
    return None


def train_judge(
    splits: Splits, runtime: Runtime, callbacks: TrainingCallbacks, waiting: Callable[[], None] = noop
) -> Judge | None:
    """The judge of this data set: cached, or trained; an interrupted training is resumed. `waiting` is called while
    another process trains it, and may raise. None if training was stopped. Raises DataError for a data set that no
    classifier can be trained on."""
    if len(splits.class_names) < 2:
        raise DataError(f"{splits.name} has one class and a judge needs two; give another judge: --features PATH")
    folder = judge_folder(splits)
    with locked(folder, on_wait=waiting):
        judge = trained_before(splits, runtime.device)
        if judge is not None:
            return judge
        run = start_judge(splits, runtime, folder, callbacks)
        path = run.train()
        if run.trainer.step < run.trainer.steps:
            return None
        checkpoint = load_checkpoint(path, runtime.device)
        test_accuracy = accuracy(runtime.frozen(checkpoint.model), splits.test, runtime.device).to_dict()
        document = {"rjem": VERSION, "data": splits.name, "test_accuracy": test_accuracy}
        write_atomically(folder / "judge.json", json.dumps(document, indent=2).encode())
        return Judge(checkpoint, test_accuracy)


def start_judge(splits: Splits, runtime: Runtime, folder: Path, callbacks: TrainingCallbacks) -> Run:
    """Resume an interrupted training, or start anew if it cannot be resumed."""
    if checkpoints_in(folder):
        run = Run(Trainer(judge_config(splits), splits, runtime, folder), callbacks)
        try:
            run.start(resume=True)
            return run
        except RjemError:
            shutil.rmtree(folder)
    run = Run(Trainer(judge_config(splits), splits, runtime, folder), callbacks)
    run.start(resume=False)
    return run
