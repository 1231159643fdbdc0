"""A run's checkpoints on disk: each written whole and read back, the newest valid one found, old ones dropped."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rjem_cli.engine.model.checkpoint import CheckpointInfo, read_info, save_checkpoint, state_path, whole_checkpoint
from rjem_cli.engine.model.tensor_file import read_tensors, write_tensors
from rjem_cli.engine.training.metrics import valid_lines
from rjem_cli.errors import AbsentError, DataError, RjemError
from rjem_cli.files import check_space, explained, make_dir
from rjem_cli.paths import checkpoints_dir, checkpoints_in, step_of

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


def read_state(path: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """What a run goes on from, of the checkpoint at `path`, and the lines of metrics that were not written then. Raises
    AbsentError or DataError."""
    tensors, description = read_tensors(state_path(path), read_info(path).state_sha256 or "none")
    if description.get("format") != STATE_FORMAT:
        raise DataError(f"{state_path(path)} is no state of {STATE_FORMAT}; use another checkpoint")
    return tensors, valid_lines(description.get("unwritten"))


def is_due(path: Path) -> bool:
    """Whether its run saved it on its way, and not because it was stopped there, or by the clock."""
    try:
        return read_info(path).config.saves_at(step_of(path))
    except RjemError:
        return False


def newest_whole(run_dir: Path, due: bool = False) -> tuple[Path | None, dict[Path, RjemError]]:
    """The newest checkpoint that is whole, with its state, and what is wrong with those after it; with `due`, among
    those that were due. Raises RjemError for one that may not be read: nobody knows whether it is whole."""
    damaged: dict[Path, RjemError] = {}
    for path in reversed(checkpoints_in(run_dir)):
        if due and not is_due(path):
            continue
        try:
            whole_checkpoint(path, torch.device("cpu"))
            read_state(path)
        except (AbsentError, DataError) as error:
            damaged[path] = error
        else:
            return path, damaged
    return None, damaged


def newest_valid(run_dir: Path, tell: Callable[[str], None]) -> Path:
    """The newest checkpoint that is whole; `tell` hears of those that are not. Raises DataError if there is none."""
    path, damaged = newest_whole(run_dir)
    for error in damaged.values():
        tell(f"passed over: {error}")
    if path is None:
        raise DataError(
            f"{run_dir} has no checkpoint that is whole with its state; train again under another name (a network that "
            "is whole can still be sampled)"
        )
    return path


def set_aside(path: Path, tell: Callable[[str], None]) -> None:
    """Out of the way, but not removed: what is damaged for a run may yet be of use. Raises RjemError."""
    with explained("rename", path):
        for file in (path, state_path(path)):
            if file.exists():
                names = (file.with_name(f"{file.name}{ASIDE}{number or ''}") for number in itertools.count())
                new = next(name for name in names if not name.exists())
                file.rename(new)
                tell(f"set aside: {new}")


def drop_old(run_dir: Path, saved: Path, keep_last: int, keep_best: bool) -> None:
    """All but the one just saved, the newest `keep_last` of any kind, as many that were due, for a divergence goes back
    to one of those, and the best on the validation images."""
    paths = checkpoints_in(run_dir)
    kept = {saved, *paths[-keep_last:], *itertools.islice(filter(is_due, reversed(paths)), keep_last)}
    if keep_best and (best := best_of(paths)):
        kept.add(best)
    with explained("clear", run_dir):
        for path in paths:
            if path not in kept:
                path.unlink(missing_ok=True)
                state_path(path).unlink(missing_ok=True)


def best_of(paths: list[Path]) -> Path | None:
    """By accuracy on the validation images, of those that were due and the last; the newer of equals. None where none
    was measured."""
    found = []
    for path in paths:
        if path != paths[-1] and not is_due(path):  # an end, beyond which the run went on
            continue
        try:
            accuracy = read_info(path).val_accuracy
        except RjemError:
            continue
        if accuracy is not None:
            found.append((accuracy, path))
    return max(found)[1] if found else None


def set_aside_after(run_dir: Path, path: Path, tell: Callable[[str], None]) -> None:
    """Those that stops, the clock, or an end saved on the way to a divergence, which the run will not take again."""
    for other in checkpoints_in(run_dir):
        if step_of(other) > step_of(path):
            set_aside(other, tell)


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
