"""The checkpoints of a run on disk: write, verify, quarantine and remove them."""

import contextlib
import itertools
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from rjem_cli.config.common import PRECISIONS
from rjem_cli.config.fields import flag_name
from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.callbacks import Log
from rjem_cli.engine.models.checkpoint import CheckpointInfo, parse_info, read_info, state_path, write_checkpoint
from rjem_cli.engine.models.tensor_file import Description, read_description, read_tensors, to_host, write_tensors
from rjem_cli.engine.runtime import Runtime
from rjem_cli.errors import AbsentError, DataError, OptionError, RjemError
from rjem_cli.files import LEFTOVER, check_space, check_writable, explained, make_dir
from rjem_cli.paths import QUARANTINE_SUFFIX, checkpoints_dir, checkpoints_in, parse_step

DEVICE_TYPES = ("cpu", "cuda", "mps")
STATE_FORMAT = "rjem-state-5"
# A resumed run cannot change them
FIXED_OPTIONS = ("arch", "depth", "width", "norm_layer", "optimizer", "val_fraction", "image_size")
HEADER_BYTES = 2**20  # upper limit for what two files need besides their tensors


@dataclass(frozen=True)
class Snapshot:
    """What a run saves at one step: the network and its prior, the state to resume from, and what is known about both.
    `runtime` is that of the run."""

    info: CheckpointInfo
    tensors: dict[str, Tensor]
    state: dict[str, Tensor]
    runtime: Runtime

    def copy(self) -> "Snapshot":
        """A copy on the host, which later steps do not change."""
        tensors, state = (
            {name: tensor if tensor.is_cuda else tensor.clone() for name, tensor in part.items()}
            for part in (self.tensors, self.state)
        )
        return replace(self, tensors=to_host(tensors), state=to_host(state))

    def write(self, path: Path) -> None:
        """Write a checkpoint and its state. The state comes first, and the checkpoint holds its sha256, so a checkpoint
        always has its state. Raises RjemError; earlier checkpoints stay as they are."""
        description = {"format": STATE_FORMAT, "device": self.runtime.device.type, "precision": self.runtime.precision}
        size = sum(tensor.nbytes for tensor in (*self.tensors.values(), *self.state.values())) + HEADER_BYTES
        check_space(make_dir(path.parent), size, f"checkpoint {path.name}")
        try:
            state_sha256 = write_tensors(state_path(path), self.state, description)
            write_checkpoint(path, self.tensors, replace(self.info, state_sha256=state_sha256))
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
    check_description(path, state_description)
    if int(tensors.get("step", -1)) != parse_step(path):
        raise DataError(f"{state_path(path)} is not the state of step {parse_step(path)}")
    return tensors


def read_precision(path: Path, device_type: str) -> str | None:
    """The precision of the run up to this checkpoint; None if it was trained on another type of device. Raises
    AbsentError or DataError for a missing or damaged state."""
    description = read_description(state_path(path))
    check_description(path, description)
    return description["precision"] if description["device"] == device_type else None


def check_description(path: Path, description: Description) -> None:
    """Raises DataError for the description of a state that rjem did not write."""
    if description.get("format") != STATE_FORMAT:
        raise DataError(f"{state_path(path)} is not in format {STATE_FORMAT}; use another checkpoint")
    device, precision = description.get("device"), description.get("precision")
    if precision not in PRECISIONS or device not in DEVICE_TYPES or (precision == "tf32" and device != "cuda"):
        raise DataError(f"{state_path(path)} has an unknown device or precision; use another checkpoint")


def latest_valid(run_dir: Path, warn: Log) -> Path:
    """The newest checkpoint whose own description and that of its state are intact. Does not verify tensors. Warns of
    newer ones that are damaged. Raises DataError if there is none, RjemError for a file that cannot be read."""
    for path in reversed(checkpoints_in(run_dir)):
        try:
            check_description(path, read_description(state_path(path), read_info(path).state_sha256 or "none"))
        except (AbsentError, DataError) as error:
            warn(f"skipped: {error}")
        else:
            return path
    raise no_valid_checkpoint(run_dir)


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


def check_options(name: str, before: CheckpointInfo, config: TrainConfig) -> None:
    """Raises OptionError for an option that the run `name` cannot change when it is resumed from `before`."""
    trained = f": run {name} was trained"
    if config.data and not before.user_images:
        raise OptionError("--data", config.data, f"{trained} with --dataset {before.config.dataset}; leave it out")
    fixed = [*FIXED_OPTIONS, *(["dataset"] if not before.user_images else [])]
    fixed += ["buffer_size"] if before.config.px_weight and config.px_weight else []
    for option in fixed:
        old, new = getattr(before.config, option), getattr(config, option)
        if old != new:
            flag = flag_name(option)
            remedy = f"without {flag}; leave it out" if old is None else f"with {flag} {old}; resume with that"
            raise OptionError(flag, new, f"{trained} {remedy}")


def remove_others(run_dir: Path, saved: Path, config: TrainConfig, warn: Log) -> None:
    """Keep the checkpoint just saved, the newest `keep_last`, the newest at a multiple of `checkpoint_every`, and the
    best on the validation images. Quarantine those of later steps, from which training diverged. Raises RjemError."""
    for path in checkpoints_in(run_dir):
        if path > saved:
            quarantine(path, warn)
    paths = checkpoints_in(run_dir)
    scheduled = [path for path in paths if parse_step(path) % config.checkpoint_every == 0]
    kept = {saved, *paths[-config.keep_last :], *scheduled[-1:]}
    if config.keep_best and (best := best_checkpoint(paths)):
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


def prepare_run_dir(run_dir: Path) -> None:
    """Create the folder of checkpoints, and check that it can be written. Remove temporary files of killed processes,
    and states whose checkpoint was not written. Raises RjemError."""
    folder = make_dir(checkpoints_dir(run_dir))
    check_writable(folder)
    with explained("clear", run_dir):
        for path in (path for part in (run_dir, folder, run_dir / "samples") for path in part.glob(".*")):
            if LEFTOVER.fullmatch(path.name):
                path.unlink()
        for state in folder.glob("step-*.state.safetensors"):
            if not (folder / state.name.replace(".state.", ".")).exists():
                state.unlink()
