"""Where rjem keeps things: its state, and runs and checkpoints by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from rjem_cli.config import DATASETS, STREAM
from rjem_cli.errors import AbsentError, ConfigError, did_you_mean

QUARANTINE_SUFFIX = ".quarantine"  # of a damaged checkpoint


def home() -> Path:
    """All state lives here: RJEM_HOME, else the platform's user data folder."""
    if os.environ.get("RJEM_HOME"):
        return expand(os.environ["RJEM_HOME"]).absolute()
    import platformdirs

    return Path(platformdirs.user_data_dir("rjem"))


def expand(name: str) -> Path:
    """A path with ~ resolved. Raises ConfigError for a user who is not there."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise ConfigError(f"{name}: there is no such home folder; give a full path") from None


def absolute(name: str | None) -> str | None:
    return None if name is None else str(expand(name).resolve())


def existing_data(name: str) -> Path:
    """Where a user's images are. Raises AbsentError if nothing is there."""
    path = expand(name)
    if not path.exists():
        raise AbsentError(f"{name} is not there; give a folder of class folders, a .zip, a .tar or a .tar.xz")
    return path


def datasets_dir() -> Path:
    return home() / "datasets"


def priors_dir() -> Path:
    return home() / "priors"


def features_dir() -> Path:
    return home() / "features"


def judges_dir() -> Path:
    return home() / "judges"


def weights_dir() -> Path:
    return home() / "weights"


def comparisons_dir() -> Path:
    return home() / "comparisons"


def attacks_dir() -> Path:
    return home() / "attacks"


def results_file() -> Path:
    return home() / "results.jsonl"


def runs_dir() -> Path:
    return home() / "runs"


def offline() -> bool:
    """RJEM_OFFLINE=1 forbids the network."""
    return os.environ.get("RJEM_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def checkpoints_dir(run_dir: Path) -> Path:
    return run_dir / "checkpoints"


def checkpoint_path(run_dir: Path, step: int) -> Path:
    return checkpoints_dir(run_dir) / f"step-{step:08d}.safetensors"


def checkpoints_in(run_dir: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    found = checkpoints_dir(run_dir).glob("step-*.safetensors")
    return sorted(path for path in found if path.stem.removeprefix("step-").isdecimal() and path.is_file())


def trained_in(run_dir: Path) -> list[Path]:
    """Those of `checkpoints_in` with a step behind them: a run saves its first before it trains."""
    return [path for path in checkpoints_in(run_dir) if step_of(path) > 0]


def run_of(checkpoint: Path) -> Path | None:
    """The folder of the run that a checkpoint lies in; None for one outside."""
    run_dir = checkpoint.absolute().parent.parent
    return run_dir if checkpoint.absolute().parent == checkpoints_dir(run_dir) else None


def run_names() -> list[str]:
    """Runs with a checkpoint, for completions and hints."""
    return sorted(path.name for path in runs_dir().glob("*") if checkpoints_in(path))


def find_run(name: str) -> Path | None:
    """The folder of a run given by name or by path; None if there is none with a checkpoint."""
    for folder in (runs_dir() / name, Path(name)):
        if checkpoints_in(folder):
            return folder.resolve()  # one run has one name, for its lock too
    return None


def find_resumable(name: str | None) -> Path:
    """The run of this name, else the one that saved last. Raises AbsentError."""
    folder = find_run(name) if name else newest_run(checkpoints_in)
    if folder is None:
        what = f"no run {name!r} with a checkpoint" if name else "no run to resume"
        raise AbsentError(f"{what} in {runs_dir()}; --run {name or 'NAME'} --resume auto starts it")
    return folder


def newest_run(checkpoints_of: Callable[[Path], list[Path]]) -> Path | None:
    """The run that saved last, among those with such checkpoints."""
    saved = {path: found[-1].stat().st_mtime for path in runs_dir().glob("*") if (found := checkpoints_of(path))}
    return max(saved, key=lambda path: saved[path]).resolve() if saved else None


def newest_of(run_dir: Path) -> Path:
    """A run's newest checkpoint that can be of use. Raises AbsentError for a run that has just begun."""
    trained = trained_in(run_dir)
    if not trained:
        raise AbsentError(
            f"run {run_dir.name} has saved nothing since it began; wait for its next checkpoint, or give the untrained "
            f"one: {checkpoints_in(run_dir)[-1]}"
        )
    return trained[-1]


def new_run_dir(name: str) -> Path:
    """Where a new run of this name goes. Raises ConfigError for a name with folders in it and for one that is taken."""
    if Path(name).name != name or name.startswith(".") or not name.isprintable():
        raise ConfigError(f"--run {name!r}: give a plain name, without folders")
    if checkpoints_in(runs_dir() / name):
        raise ConfigError(
            f"run {name} already exists in {runs_dir()}; resume it with --resume {name}, or give another --run"
        )
    return (runs_dir() / name).resolve()


def step_of(checkpoint: Path) -> int:
    """`step-00000600.safetensors` -> 600."""
    return int(checkpoint.stem.removeprefix("step-"))


def find_subject(name: str) -> Path | None:
    """The checkpoint that `name` means, a file or a run; None for images. Raises AbsentError for nothing that is there,
    ConfigError for what is two of a run, a data set and a place of images."""
    if not name:
        raise ConfigError("an empty name is no place of images; give a folder, a file, a run or -")
    if name == STREAM or name.rpartition(":")[0] in DATASETS:
        return None
    if name in DATASETS and not checkpoints_in(runs_dir() / name):
        if Path(name).exists():
            raise ConfigError(f"{name} is a data set and a place of images; give {name}:train or ./{name}")
        return None
    path, run = expand(name), runs_dir() / name
    is_run = "/" not in name and bool(checkpoints_in(run))
    if path.is_file() and path.suffix == ".safetensors":
        return path
    if path.is_dir() and checkpoints_in(path):
        return newest_of(run if is_run else path)  # as find_checkpoint has it
    if path.exists() and is_run:
        raise ConfigError(f"{name} is a run and a place of images; give ./{name}, or the run's folder {run}")
    if path.exists():
        return None
    if is_run:
        return newest_of(run)
    runs = run_names()
    hint = did_you_mean(name, runs) if runs else "give a folder, an .npz, a .tar or a checkpoint"
    raise AbsentError(f"{name} is not there, neither images nor a checkpoint nor a run in {runs_dir()}; {hint}")


def find_checkpoint(name: str | None) -> Path:
    """A checkpoint file from a path, a run's name or folder, or (None) the run that saved last. Raises AbsentError."""
    if name is not None:
        if Path(name).is_file():
            return Path(name)
        folder = find_run(name)
        if folder is not None:
            return newest_of(folder)
        runs = run_names()
        hint = did_you_mean(name, runs) if runs else "there is no run yet; train one: rjem train"
        raise AbsentError(f"{name} is no checkpoint and no run in {runs_dir()}; {hint}")
    newest = newest_run(trained_in)
    if newest is None:
        raise AbsentError(f"no checkpoint yet in {runs_dir()}; train one: rjem train")
    return newest_of(newest)
