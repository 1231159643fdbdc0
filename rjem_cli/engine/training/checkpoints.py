"""A run's checkpoints on disk: each written whole and read back, the newest valid one found, old ones dropped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from rjem_cli.engine.model.checkpoint import CheckpointInfo, read_info, save_checkpoint, state_path
from rjem_cli.engine.model.tensor_file import read_tensors, write_tensors
from rjem_cli.errors import DataError, RjemError
from rjem_cli.files import check_space, explained, make_dir
from rjem_cli.paths import checkpoints_in, step_of

STATE_FORMAT = "rjem-state-1"
HEADERS = 2**20  # bytes that two files need besides their tensors, at most
DAMAGED = ".damaged"


def save_pair(path: Path, model: nn.Module, info: CheckpointInfo, state: dict[str, Tensor]) -> None:
    """The state first: a checkpoint that is there has its state. Raises RjemError where that fails; earlier checkpoints
    stay as they are."""
    tensors = [*state.values(), *model.state_dict().values()]
    check_space(make_dir(path.parent), sum(tensor.nbytes for tensor in tensors) + HEADERS, f"checkpoint {path.name}")
    write_tensors(state_path(path), state, {"format": STATE_FORMAT, "step": info.step})
    save_checkpoint(path, model, info)


def read_state(path: Path) -> dict[str, Tensor]:
    """What a run goes on from, of the checkpoint at `path`. Raises AbsentError or DataError."""
    tensors, description = read_tensors(state_path(path))
    if description != {"format": STATE_FORMAT, "step": step_of(path)}:
        raise DataError(f"{state_path(path)} is the state of another checkpoint or format")
    return tensors


def newest_valid(run_dir: Path, tell: Callable[[str], None]) -> Path:
    """The newest checkpoint that is whole, with its state; `tell` hears of those that are not. Raises DataError if
    there is none."""
    for path in reversed(checkpoints_in(run_dir)):
        try:
            read_tensors(path)
            read_state(path)
        except RjemError as error:
            tell(f"passed over: {error}")
        else:
            return path
    raise DataError(f"{run_dir} has no checkpoint that is whole; train again")


def drop_old(run_dir: Path, keep_last: int, keep_best: bool) -> None:
    """All but the newest `keep_last`, and but the best on the validation images."""
    paths = checkpoints_in(run_dir)
    kept = set(paths[-keep_last:])
    if keep_best and (best := best_of(paths)):
        kept.add(best)
    with explained("clear", run_dir):
        for path in paths:
            if path not in kept:
                path.unlink(missing_ok=True)
                state_path(path).unlink(missing_ok=True)


def best_of(paths: list[Path]) -> Path | None:
    """By accuracy on the validation images; the newer of equals. None where none was measured."""
    found = []
    for path in paths:
        try:
            accuracy = read_info(path).val_accuracy
        except RjemError:
            continue
        if accuracy is not None:
            found.append((accuracy, path))
    return max(found)[1] if found else None


def clean(run_dir: Path, newest: Path | None) -> None:
    """Set the damaged checkpoints behind `newest` aside, and remove what a kill left half done."""
    folder = run_dir / "checkpoints"
    with explained("clear", folder):
        for path in checkpoints_in(run_dir):
            if newest is not None and step_of(path) > step_of(newest):
                path.rename(path.with_name(path.name + DAMAGED))
        for path in folder.glob(".step-*.safetensors.*"):
            path.unlink()
        for state in folder.glob("step-*.state.safetensors"):
            if not (folder / state.name.replace(".state.", ".")).exists():
                state.unlink()
