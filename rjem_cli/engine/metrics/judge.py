"""The judge: a plain classifier of the reference's data set, trained once and cached by its data and recipe.

Its features replace Inception's where those make no sense (8x8 digits) or are not available. The scores are then named
fd_judge, is_judge and so on, never FID. A judge is never the model under test.
"""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.accuracy import accuracy
from rjem_cli.engine.callbacks import OnProgress, noop
from rjem_cli.engine.data.downloads import DATASET_INFO
from rjem_cli.engine.data.images import Splits
from rjem_cli.engine.models.checkpoint import Checkpoint, load_checkpoint
from rjem_cli.engine.runtime import Runtime
from rjem_cli.engine.training.progress import TrainingCallbacks, TrainingProgress
from rjem_cli.engine.training.run import Run
from rjem_cli.engine.training.trainer import Trainer
from rjem_cli.errors import DataError, RjemError
from rjem_cli.files import json_digest, locked, write_json
from rjem_cli.paths import checkpoints_in, judges_dir

VERSION = 1  # of the recipe below
WIDTH = 2
JUDGE_FEATURES = 64 * WIDTH
EPOCHS, BATCH_SIZE, FEWEST_STEPS = 5, 128, 500


class Judge(NamedTuple):
    """A checkpoint, and its accuracy on the test split, which every document must state."""

    checkpoint: Checkpoint
    test_accuracy: dict[str, Any] | None


def judge_recipe(splits: Splits) -> dict[str, Any]:
    """Options of a small plain classifier: no attack, no energy."""
    steps = max(FEWEST_STEPS, -(-EPOCHS * len(splits.train) // BATCH_SIZE))
    mirrored = splits.name in DATASET_INFO and DATASET_INFO[splits.name].mirrors
    recipe: dict[str, Any] = {"depth": 10, "width": WIDTH, "norm_layer": "batch", "pgd_steps": 0, "px_weight": 0.0}
    recipe |= {"crop_pad": 4 if mirrored else 0, "flip": mirrored, "val_fraction": 0.0, "ema_decay": 0.99, "seed": 0}
    recipe |= {"optimizer": "adam", "lr": 2e-3, "lr_schedule": "cosine", "weight_decay": 0.0, "warmup_steps": 100}
    recipe |= {"batch_size": BATCH_SIZE, "steps": steps, "sample_every": steps, "log_every": 100}
    return recipe | {"checkpoint_every": 1000}


def judge_config(splits: Splits) -> TrainConfig:
    """The recipe with the defaults of all other options."""
    return TrainConfig(**judge_recipe(splits))


def judge_folder(splits: Splits) -> Path:
    """Named by a digest of the images and the recipe."""
    key = [VERSION, splits.train.digest(), splits.test.digest(), judge_recipe(splits)]
    return judges_dir() / json_digest(key)[:32]


def load_judge(splits: Splits, device: torch.device) -> Judge | None:
    """The cached judge of this data set. None if there is none, or it cannot be read."""
    with contextlib.suppress(IndexError, RjemError):
        path = checkpoints_in(judge_folder(splits))[-1]
        test_accuracy = read_test_accuracy(path)
        return None if test_accuracy is None else Judge(load_checkpoint(path, device), test_accuracy)
    return None


def read_test_accuracy(path: Path) -> dict[str, Any] | None:
    """Of a judge's checkpoint, as measured when it was trained. None for any other checkpoint."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        result = json.loads((path.parent.parent / "judge.json").read_bytes())["test_accuracy"]
        return result if isinstance(result["value"], float) and isinstance(result["of"], int) else None
    return None


def train_judge(splits: Splits, runtime: Runtime, on_progress: OnProgress = noop) -> Judge:
    """The judge of this data set, cached or newly trained; an interrupted training is resumed. If `on_progress` raises,
    the training first saves a checkpoint. Raises DataError for a data set with a single class."""
    if len(splits.class_names) < 2:
        raise DataError(f"{splits.name} has one class, and a judge needs two; use another judge: --features PATH")
    folder, errors = judge_folder(splits), []

    def report(progress: TrainingProgress) -> None:
        try:
            on_progress("training the judge", progress.step, progress.steps)
        except Exception as error:
            errors.append(error)

    with locked(folder, on_wait=lambda: on_progress("waiting for another process that trains this judge", 0, 1)):
        judge = load_judge(splits, runtime.device)
        if judge is not None:
            return judge
        callbacks = TrainingCallbacks(on_progress=report, should_stop=lambda: bool(errors))
        path = start_training(splits, runtime, folder, callbacks).train()
        if errors:
            raise errors[0]
        checkpoint = load_checkpoint(path, runtime.device)
        test_accuracy = accuracy(runtime.frozen(checkpoint.model), splits.test, runtime.device).to_dict()
        document = {"rjem": VERSION, "data": splits.name, "test_accuracy": test_accuracy}
        write_json(folder / "judge.json", document)
        return Judge(checkpoint, test_accuracy)


def start_training(splits: Splits, runtime: Runtime, folder: Path, callbacks: TrainingCallbacks) -> Run:
    """Resume an interrupted training; start again if it cannot be resumed."""
    resume = bool(checkpoints_in(folder))
    run = Run(Trainer(judge_config(splits), splits, runtime, folder, fit_prior=None), callbacks)
    try:
        run.start(resume)
    except RjemError:
        if not resume:
            raise
        shutil.rmtree(folder)
        return start_training(splits, runtime, folder, callbacks)
    return run
