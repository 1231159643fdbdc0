"""Where rjem keeps its files, and how runs and checkpoints are found by name."""

import os
from collections.abc import Callable
from pathlib import Path

from rjem_cli.config.common import DATASETS, PARTS, STREAM
from rjem_cli.errors import AbsentError, ConfigError, DataError, OptionError, RjemError, did_you_mean

FOREIGN_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".h5", ".onnx"}  # of other projects' networks
QUARANTINE_SUFFIX = ".quarantine"  # of a damaged checkpoint
PRETRAINED_DIR = Path(__file__).with_name("pretrained")  # of the models that come with rjem, each laid out as a run
CARD_FILE = "card.yaml"  # of a pretrained model: the checkpoint's sha256, and its description


def expand(name: str) -> Path:
    """A path with ~ resolved. Raises ConfigError for an unknown user."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise ConfigError(f"{name}: there is no such home folder; give a full path") from None


def absolute(name: str | None) -> str | None:
    return None if name is None else str(expand(name).resolve())


def existing_data(name: str) -> Path:
    """The path of a user's images. Raises AbsentError if nothing is there."""
    path = expand(name)
    if not path.exists():
        whole, part = parse_part(name)
        if part and expand(whole).exists():
            raise AbsentError(
                f"{name} does not exist; give {whole}, and add --split {part} in rjem attack or rjem eval"
            )
        raise AbsentError(f"{name} does not exist; give a folder of images, an archive or an .npz")
    return path


def home() -> Path:
    """The folder of runs and results: RJEM_HOME, else the platform's folder for user data."""
    if os.environ.get("RJEM_HOME"):
        return expand(os.environ["RJEM_HOME"]).absolute()
    import platformdirs

    return Path(platformdirs.user_data_dir("rjem"))


def runs_dir() -> Path:
    return home() / "runs"


def results_file() -> Path:
    return home() / "results.jsonl"


def cache_dir() -> Path:
    """The folder of everything that can be downloaded or computed again: RJEM_CACHE, else `cache` in RJEM_HOME, else
    the platform's cache folder."""
    if os.environ.get("RJEM_CACHE"):
        return expand(os.environ["RJEM_CACHE"]).absolute()
    if os.environ.get("RJEM_HOME"):
        return home() / "cache"
    import platformdirs

    return Path(platformdirs.user_cache_dir("rjem"))


def datasets_dir() -> Path:
    return cache_dir() / "datasets"


def priors_dir() -> Path:
    return cache_dir() / "priors"


def features_dir() -> Path:
    return cache_dir() / "features"


def judges_dir() -> Path:
    return cache_dir() / "judges"


def weights_dir() -> Path:
    return cache_dir() / "weights"


def comparisons_dir() -> Path:
    return cache_dir() / "comparisons"


def attacks_dir() -> Path:
    return cache_dir() / "attacks"


def timings_dir() -> Path:
    return cache_dir() / "timings"


def offline() -> bool:
    """RJEM_OFFLINE=1 forbids downloads."""
    return os.environ.get("RJEM_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def checkpoints_dir(run_dir: Path) -> Path:
    return run_dir / "checkpoints"


def checkpoint_path(run_dir: Path, step: int) -> Path:
    return checkpoints_dir(run_dir) / f"step-{step:08d}.safetensors"


def parse_step(checkpoint: Path) -> int:
    """`step-00000600.safetensors` -> 600."""
    return int(checkpoint.stem.removeprefix("step-"))


def checkpoints_in(run_dir: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    paths = checkpoints_dir(run_dir).glob("step-*.safetensors")
    return sorted(path for path in paths if path.stem.removeprefix("step-").isdecimal() and path.is_file())


def trained_checkpoints_in(run_dir: Path) -> list[Path]:
    """A run's checkpoints, oldest first, without the one that it saves before its first step."""
    return [path for path in checkpoints_in(run_dir) if parse_step(path) > 0]


def find_run_dir(checkpoint: Path) -> Path | None:
    """The folder of the run that a checkpoint belongs to; None for one outside of a run."""
    run_dir = checkpoint.absolute().parent.parent
    return run_dir if checkpoint.absolute().parent == checkpoints_dir(run_dir) else None


def run_names() -> list[str]:
    """The runs with a checkpoint."""
    return sorted(path.name for path in runs_dir().glob("*") if checkpoints_in(path))


def pretrained_names() -> list[str]:
    """The models that come with rjem."""
    return sorted(path.name for path in PRETRAINED_DIR.glob("*") if checkpoints_in(path))


def model_names() -> list[str]:
    """The runs with a checkpoint and the pretrained models, for completion and hints."""
    return sorted({*run_names(), *pretrained_names()})


def pretrained_hint() -> str:
    return f"use a pretrained model: {', '.join(pretrained_names())}"


def find_run(name: str) -> Path | None:
    """The folder of a run given by name or path, or of a pretrained model; None if it has no checkpoint."""
    for folder in (runs_dir() / name, Path(name), PRETRAINED_DIR / name):
        if checkpoints_in(folder):
            return folder.resolve()  # one run has one path, and so one lock
    return None


def is_pretrained(run_dir: Path) -> bool:
    """Whether it is the folder of a model that comes with rjem."""
    return run_dir.resolve().parent == PRETRAINED_DIR.resolve()


def newest_run(list_checkpoints: Callable[[Path], list[Path]]) -> Path | None:
    """The run that saved last, among those for which `list_checkpoints` returns any."""
    newest = {path: found[-1].stat().st_mtime for path in runs_dir().glob("*") if (found := list_checkpoints(path))}
    return max(newest, key=lambda path: newest[path]).resolve() if newest else None


def find_resumable(name: str | None) -> Path:
    """The folder of the named run, else of the run that saved last. Raises AbsentError, ConfigError for a pretrained
    model, and DataError or RjemError as `check_unused` does."""
    folder = find_run(name) if name else newest_run(checkpoints_in)
    if folder and is_pretrained(folder):
        raise ConfigError(
            f"{folder.name} is pretrained and cannot be resumed; train your own: rjem train --preset {folder.name}"
        )
    if folder is None:
        if name and "/" not in name:
            check_unused(runs_dir() / name)
        what = f"no run {name!r} with a checkpoint" if name else "no run to resume"
        raise AbsentError(f"{what} in {runs_dir()}; start it with --run {name or 'NAME'} --resume auto")
    return folder


def latest_checkpoint(run_dir: Path) -> Path:
    """A run's latest trained checkpoint. Raises AbsentError if it has none yet."""
    trained = trained_checkpoints_in(run_dir)
    if not trained:
        raise AbsentError(
            f"run {run_dir.name} has not saved a trained checkpoint yet; wait for its next one, or give the untrained "
            f"one: {checkpoints_in(run_dir)[-1]}"
        )
    return trained[-1]


def named_run_dir(name: str) -> Path:
    """The folder of the run of this name, which need not exist. Raises OptionError for an invalid name."""
    if not name or Path(name).name != name or name.startswith((".", "-")) or not name.isprintable():
        raise OptionError("--run", name, ": give a plain name, without folders, that does not start with - or .")
    return (runs_dir() / name).resolve()


def new_run_dir(name: str) -> Path:
    """The folder for a new run. Raises ConfigError for an invalid name, or one that is taken, also by a pretrained
    model; DataError or RjemError as `check_unused` does."""
    run_dir = named_run_dir(name)
    if name in pretrained_names():
        raise OptionError("--run", name, " is the name of a pretrained model; choose another name")
    if checkpoints_in(run_dir):
        raise ConfigError(f"run {name} already exists in {runs_dir()}; resume it with --resume {name}, or rename --run")
    check_unused(run_dir)
    return run_dir


def check_unused(run_dir: Path) -> None:
    """A folder without checkpoints may become a new run if it does not exist, or if its run was killed before it saved
    its first checkpoint. Raises DataError if it holds the metrics or quarantined checkpoints of a run, RjemError if it
    cannot be read."""
    remedy = f"give another --run, or remove {run_dir} to start again"
    try:
        names = {*os.listdir(run_dir)} if run_dir.exists() else set()
        if checkpoints_dir(run_dir).name in names:
            names |= {*os.listdir(checkpoints_dir(run_dir))}
    except OSError as error:
        raise RjemError(f"cannot read {error.filename}: {error.strerror}; {remedy}") from None
    if any(QUARANTINE_SUFFIX in name for name in names):
        raise DataError(f"all checkpoints of run {run_dir.name} are damaged and were renamed to *.quarantine; {remedy}")
    if "metrics.jsonl" in names:
        raise DataError(f"run {run_dir.name} has a metrics.jsonl but no checkpoint; {remedy}")


def find_checkpoint(name: str | None) -> Path:
    """A checkpoint by file path, run name or folder, or the name of a pretrained model; None means that of the run that
    saved last. Raises AbsentError."""
    if name is None:
        newest = newest_run(trained_checkpoints_in)
        if newest is None:
            raise AbsentError(f"no checkpoint in {runs_dir()}; train one first (rjem train), or {pretrained_hint()}")
        return latest_checkpoint(newest)
    check_not_foreign(Path(name))
    if Path(name).is_file():
        return Path(name)
    folder = find_run(name)
    if folder is not None:
        return latest_checkpoint(folder)
    hint = did_you_mean(name, model_names()) if run_names() else f"train one (rjem train), or {pretrained_hint()}"
    raise AbsentError(f"no run or checkpoint named {name!r} in {runs_dir()}; {hint}")


def check_not_foreign(path: Path) -> None:
    """Raises ConfigError for a file that torch.save or a similar program wrote, which may run any code."""
    if path.suffix.lower() in FOREIGN_SUFFIXES and path.is_file():
        raise ConfigError(
            f"{path} is not a checkpoint of rjem; run rjem import {path} first, or write a function that builds its "
            "network and loads this file, and give that with --model module:function"
        )


def parse_part(text: str) -> tuple[str, str]:
    """`cifar10:test` -> ("cifar10", "test"); without a part ("cifar10", ""). A file of the whole name has no part.
    Raises ConfigError for a part that no data set has."""
    name, _, part = text.rpartition(":")
    is_there = bool(name) and expand(name).exists() and not expand(text).exists()
    if (name in DATASETS or is_there) and part not in PARTS:
        raise ConfigError(f"{text}: {name} has no part {part!r}; choose from {', '.join(PARTS)}")
    if name in DATASETS:
        return name, part
    return (name, part) if name and part in PARTS and not expand(text).exists() else (text, "")


def is_dataset_or_part(text: str) -> bool:
    """Whether it names a built-in data set, or a part of a user's."""
    name, part = parse_part(text)
    return name in DATASETS or (part != "" and expand(name).exists())


def find_checkpoint_or_images(name: str) -> Path | None:
    """The checkpoint that `name` means, as a file or a run; None if it means images. Raises AbsentError if it means
    nothing, ConfigError if it means two things."""
    if not name:
        raise ConfigError("the name of the images is empty; give a folder, a file, a run or -")
    path, run_dir = expand(name), runs_dir() / name
    check_not_foreign(path)
    if not checkpoints_in(run_dir):
        run_dir = PRETRAINED_DIR / name
    is_run = "/" not in name and bool(checkpoints_in(run_dir))
    if name == STREAM or (":" in name and is_dataset_or_part(name)):
        return None
    if name in DATASETS and not is_run:
        if path.exists():
            raise ConfigError(f"{name} is both a data set and a path; give {name}:train or ./{name}")
        return None
    if path.is_file() and path.suffix == ".safetensors":
        return path
    if path.is_dir() and checkpoints_in(path):
        return find_checkpoint(name)
    if path.exists() and is_run:
        raise ConfigError(f"{name} is both a run and a path; give ./{name}, or the run's folder {run_dir}")
    if is_run:
        return latest_checkpoint(run_dir)
    if path.exists():
        return None
    others = f"give a folder, an .npz, a .tar or a checkpoint, or {pretrained_hint()}"
    hint = did_you_mean(name, model_names()) if run_names() else others
    raise AbsentError(f"no images, checkpoint or run named {name!r}, neither here nor in {runs_dir()}; {hint}")
