"""A run's checkpoints on disk: written whole and read back, damaged ones quarantined, old ones removed."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from rjem_cli.config import TrainConfig
from rjem_cli.config.fields import flag_name
from rjem_cli.engine.callbacks import Log
from rjem_cli.engine.models.checkpoint import CheckpointInfo, parse_info, read_info, save_checkpoint, state_path
from rjem_cli.engine.models.tensor_file import Description, read_description, read_tensors, write_tensors
from rjem_cli.errors import AbsentError, ConfigError, DataError, RjemError
from rjem_cli.files import check_space, explained, make_dir
from rjem_cli.paths import QUARANTINE_SUFFIX, checkpoints_dir, checkpoints_in, parse_step

STATE_FORMAT = "rjem-state-4"
STATE_OPTIONS = ("depth", "width", "norm_layer", "optimizer")  # decide the shapes of a state
HEADER_BYTES = 2**20  # the most that two files need besides their tensors
LEFTOVERS = (  # of killed processes
    ".metrics.jsonl.*",
    ".config.yaml.*",
    ".summary.json.*",
    ".curves.png.*",
    "checkpoints/.step-*.safetensors.*",
    "samples/.*.png.*",
)


def save_pair(path: Path, model: nn.Module, info: CheckpointInfo, state: dict[str, Tensor]) -> None:
    """Write a checkpoint and its state. The state comes first, and the checkpoint holds its sha256, so a checkpoint
    always has its state. Raises RjemError; earlier checkpoints stay as they are."""
    tensors = [*state.values(), *model.state_dict().values()]
    size = sum(tensor.nbytes for tensor in tensors) + HEADER_BYTES
    check_space(make_dir(path.parent), size, f"checkpoint {path.name}")
    try:
        state_sha256 = write_tensors(state_path(path), state, {"format": STATE_FORMAT})
        save_checkpoint(path, model, replace(info, state_sha256=state_sha256))
    except RjemError:
        if not path.exists():  # make room for the next attempt
            with contextlib.suppress(OSError):
                state_path(path).unlink(missing_ok=True)
        raise


def read_intact_state(path: Path) -> dict[str, Tensor]:
    """The state of an intact checkpoint. Reads each file once. Raises AbsentError or DataError for a missing or damaged
    file, RjemError for one that cannot be read."""
    _, description = read_tensors(path)
    tensors, state_description = read_tensors(state_path(path), parse_info(path, description).state_sha256 or "none")
    check_format(path, state_description)
    if int(tensors.get("step", -1)) != parse_step(path):
        raise DataError(f"{state_path(path)} is not the state of step {parse_step(path)}")
    return tensors


def check_format(path: Path, description: Description) -> None:
    if description.get("format") != STATE_FORMAT:
        raise DataError(f"{state_path(path)} is not in format {STATE_FORMAT}; use another checkpoint")


def latest_described(run_dir: Path) -> tuple[Path | None, dict[Path, RjemError]]:
    """The newest checkpoint with intact descriptions of its network and state, and the errors of newer ones. Does not
    verify tensors. Raises RjemError for a file that cannot be read."""
    damaged: dict[Path, RjemError] = {}
    for path in reversed(checkpoints_in(run_dir)):
        try:
            state_sha256 = read_info(path).state_sha256 or "none"
            check_format(path, read_description(state_path(path), state_sha256))
        except (AbsentError, DataError) as error:
            damaged[path] = error
        else:
            return path, damaged
    return None, damaged


def latest_valid(run_dir: Path, warn: Log) -> Path:
    """`latest_described`; `warn` is told of skipped checkpoints. Raises DataError if there is none."""
    path, damaged = latest_described(run_dir)
    for error in damaged.values():
        warn(f"skipped: {error}")
    if path is None:
        raise no_valid_checkpoint(run_dir)
    return path


def no_valid_checkpoint(run_dir: Path) -> DataError:
    return DataError(
        f"{run_dir} has no valid checkpoint with its state; train under another --run (rjem generate still reads "
        "intact networks)"
    )


def quarantine(path: Path, warn: Log) -> None:
    """Rename a checkpoint and its state, so that the run does not use them. Raises RjemError."""
    with explained("rename", path):
        for file in (path, state_path(path)):
            if file.exists():
                suffixes = (f"{QUARANTINE_SUFFIX}{number or ''}" for number in itertools.count())
                new = next(new for suffix in suffixes if not (new := file.with_name(file.name + suffix)).exists())
                file.rename(new)
                warn(f"renamed {file.name} to {new.name}")


def check_same_run(name: str, before: CheckpointInfo, now: CheckpointInfo, steps: int) -> None:
    """Whether the run `name` can continue from `before` to `steps` with the options and images of `now`. Raises
    DataError for other images, ConfigError for options that do not fit its state."""
    if before.data_digest != now.data_digest:
        raise DataError(f"run {name} was trained on other images than {now.data_name} has now; give those with --data")
    check_state_options(name, before.config, now.config)
    if before.step > steps:
        raise ConfigError(f"run {name} is at step {before.step}, beyond --steps {steps}; give more steps or epochs")


def check_state_options(name: str, before: TrainConfig, now: TrainConfig) -> None:
    """Raises ConfigError for an option that the run's state does not fit."""
    for option in STATE_OPTIONS:
        old, new = getattr(before, option), getattr(now, option)
        if old != new:
            flag = flag_name(option)
            raise ConfigError(f"{flag} {new}: run {name} was trained with {flag} {old}; resume with that")


def remove_old(run_dir: Path, saved: Path, keep_last: int, keep_best: bool) -> None:
    """Keep the checkpoint just saved, the newest `keep_last`, and the best on the validation images. Raises
    RjemError."""
    paths = checkpoints_in(run_dir)
    kept = {saved, *paths[-keep_last:]}
    if keep_best and (best := best_checkpoint(paths)):
        kept.add(best)
    with explained("clear", run_dir):
        for path in paths:
            if path not in kept:
                path.unlink(missing_ok=True)
                state_path(path).unlink(missing_ok=True)


def best_checkpoint(paths: list[Path]) -> Path | None:
    """By accuracy on the validation images, the newer of equals; None if none was measured."""
    measured = []
    for path in paths:
        with contextlib.suppress(RjemError):
            if (accuracy := read_info(path).val_accuracy) is not None:
                measured.append((accuracy, path))
    return max(measured)[1] if measured else None


def remove_leftovers(run_dir: Path) -> None:
    """Remove temporary files of killed processes, and states whose checkpoint was not written. Raises RjemError."""
    folder = checkpoints_dir(run_dir)
    with explained("clear", run_dir):
        for pattern in LEFTOVERS:
            for path in run_dir.glob(pattern):
                path.unlink()
        for state in folder.glob("step-*.state.safetensors"):
            if not (folder / state.name.replace(".state.", ".")).exists():
                state.unlink()
