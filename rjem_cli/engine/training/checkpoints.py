"""A run's checkpoints on disk: each written whole and read back, the newest valid one found, old ones dropped."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rjem_cli.engine.model.checkpoint import CheckpointInfo, info_of, read_info, save_checkpoint, state_path
from rjem_cli.engine.model.tensor_file import Description, read_description, read_tensors, write_tensors
from rjem_cli.engine.training.metrics import valid_lines
from rjem_cli.errors import AbsentError, DataError, RjemError
from rjem_cli.files import check_space, explained, make_dir
from rjem_cli.paths import checkpoints_dir, checkpoints_in

STATE_FORMAT = "rjem-state-3"
HEADERS = 2**20  # bytes that two files need besides their tensors, at most
ASIDE = ".aside"
LEFT_BY_KILLS = (
    ".metrics.jsonl.*",
    ".config.yaml.*",
    ".summary.json.*",
    ".curves.png.*",
    "checkpoints/.step-*.safetensors.*",
    "samples/.*.png.*",
)


def save_pair(
    path: Path, model: nn.Module, info: CheckpointInfo, state: dict[str, Tensor], unwritten: list[dict[str, Any]]
) -> None:
    """The state first, with the lines of metrics that are `unwritten`; the checkpoint names its sha256, so one that is
    there has its state. Raises RjemError where that fails; earlier checkpoints stay as they are."""
    tensors = [*state.values(), *model.state_dict().values()]
    check_space(make_dir(path.parent), sum(tensor.nbytes for tensor in tensors) + HEADERS, f"checkpoint {path.name}")
    try:
        state_sha256 = write_tensors(state_path(path), state, {"format": STATE_FORMAT, "unwritten": unwritten})
        save_checkpoint(path, model, replace(info, state_sha256=state_sha256))
    except RjemError:
        if not path.exists():  # the room is needed for the next attempt
            with contextlib.suppress(OSError):
                state_path(path).unlink(missing_ok=True)
        raise


def read_intact(path: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """State and unwritten metric lines of an intact checkpoint. Reads each file once. Raises AbsentError or DataError
    for a missing or damaged file, RjemError for one that may not be read."""
    _, description = read_tensors(path)
    tensors, about = read_tensors(state_path(path), info_of(path, description).state_sha256 or "none")
    check_format(path, about)
    return tensors, valid_lines(about.get("unwritten"))


def check_format(path: Path, description: Description) -> None:
    """Raises DataError for the description of a state of another format."""
    if description.get("format") != STATE_FORMAT:
        raise DataError(f"{state_path(path)} is not in format {STATE_FORMAT}; use another checkpoint")


def latest_described(run_dir: Path) -> tuple[Path | None, dict[Path, RjemError]]:
    """The newest checkpoint with intact descriptions of its network and state, and the errors of newer ones. Does not
    verify tensors. Raises RjemError for a file that may not be read."""
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


def latest_valid(run_dir: Path, warn: Callable[[str], None]) -> Path:
    """`latest_described`; `warn` hears of skipped checkpoints. Raises DataError if there is none."""
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


def set_aside(path: Path, warn: Callable[[str], None]) -> None:
    """Out of the way, but not removed: what is damaged for a run may yet be of use. Raises RjemError."""
    with explained("rename", path):
        for file in (path, state_path(path)):
            if file.exists():
                names = (file.with_name(f"{file.name}{ASIDE}{number or ''}") for number in itertools.count())
                new = next(name for name in names if not name.exists())
                file.rename(new)
                warn(f"set aside: {new}")


def drop_old(run_dir: Path, saved: Path, keep_last: int, keep_best: bool) -> None:
    """All but the one just saved, the newest `keep_last`, and the best on the validation images."""
    paths = checkpoints_in(run_dir)
    kept = {saved, *paths[-keep_last:]}
    if keep_best and (best := best_of(paths)):
        kept.add(best)
    with explained("clear", run_dir):
        for path in paths:
            if path not in kept:
                path.unlink(missing_ok=True)
                state_path(path).unlink(missing_ok=True)


def best_of(paths: list[Path]) -> Path | None:
    """By accuracy on the validation images, the newer of equals; None where none was measured."""
    found = []
    for path in paths:
        with contextlib.suppress(RjemError):
            if (accuracy := read_info(path).val_accuracy) is not None:
                found.append((accuracy, path))
    return max(found)[1] if found else None


def clean(run_dir: Path) -> None:
    """Remove what a kill left half done: temporary files, and states whose checkpoint was not written."""
    folder = checkpoints_dir(run_dir)
    with explained("clear", run_dir):
        for pattern in LEFT_BY_KILLS:
            for path in run_dir.glob(pattern):
                path.unlink()
        for state in folder.glob("step-*.state.safetensors"):
            if not (folder / state.name.replace(".state.", ".")).exists():
                state.unlink()
