"""Which run `rjem train` trains: a new one, or one that it resumes."""

import contextlib
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rjem_cli import paths
from rjem_cli.cli.options import CommandCall
from rjem_cli.config.fields import flag_name
from rjem_cli.config.sources import ConfigSource, locate, preset_for, strongest_value
from rjem_cli.config.training import TrainConfig
from rjem_cli.errors import AbsentError, ConfigError, OptionError

NETWORK_OPTIONS = ("arch", "depth", "width", "norm_layer")


@dataclass(frozen=True)
class RunStart:
    """What a run trains, and from where: the checkpoint that is `resumed`, or the `initial` one whose weights a new run
    takes, or neither."""

    config: TrainConfig
    run_dir: Path
    resumed: Path | None = None
    initial: Path | None = None


def resolve_run(call: CommandCall[TrainConfig], resume: str | None, init_from: str | None) -> RunStart:
    """Raises ConfigError, AbsentError or DataError."""
    with named_sources(call.sources):
        run_dir = find_run_to_resume(call.sources, resume) if resume is not None else None
    if run_dir is None:
        return resolve_new_run(call, resume, init_from)
    if init_from is not None and resume != "auto":
        raise ConfigError(f"--init-from starts a new run, --resume {resume} continues one; give one of them")
    from rjem_cli.engine.models.checkpoint import read_info, with_data_paths
    from rjem_cli.engine.training.checkpointing import check_options, latest_valid

    checkpoint = latest_valid(run_dir, call.console.warn)
    before = with_data_paths(read_info(checkpoint), checkpoint)
    if before.is_imported:
        name = shell_name(run_dir)
        raise ConfigError(f"run {name} was imported and cannot be resumed; fine-tune it: rjem train --init-from {name}")
    base = ConfigSource(f"run {run_dir.name}", before.config.to_dict())
    given = {key: strongest_value(call.sources, key) for key in ("preset", "dataset")}
    with named_sources(call.sources):
        if given["preset"] not in (None, before.config.preset):
            started = f"--preset {before.config.preset}" if before.config.preset else "no preset"
            problem = f": run {run_dir.name} was started with {started}; leave it out, or give single options"
            raise OptionError("--preset", given["preset"], problem)
        config = with_absolute_paths(call.resolve(base))
        if before.user_images and not config.data:
            if given["dataset"]:
                problem = f": run {run_dir.name} was trained with --data {before.data_name}; leave it out"
                raise OptionError("--dataset", given["dataset"], problem)
            raise AbsentError(f"no config.yaml of its run says where {before.data_name} is; give it with --data")
        check_options(run_dir.name, before, config)
    call.console.log(base.origin)
    if note := describe_stretch(before.config, config, before.step):
        call.console.note(note)
    return RunStart(config, run_dir, resumed=checkpoint)


def describe_stretch(before: TrainConfig, config: TrainConfig, step: int) -> str | None:
    """What another length changes in the learning rate of a run that is resumed at `step`; None if nothing."""
    if config.lr_schedule == "constant" or (before.steps, before.epochs) == (config.steps, config.epochs):
        return None
    text = f"--lr-schedule {config.lr_schedule} is stretched over the new length"
    if before.steps is None or config.steps is None:
        return text
    from rjem_cli.engine.training.optimizer import learning_rate

    old, new = (learning_rate(min(step, each.steps or 0), each.steps or 1, each) for each in (before, config))
    return (
        f"{text}, {config.steps} steps instead of {before.steps}: the rate at step {step} is {new:.3g}, not {old:.3g}"
    )


def resolve_new_run(call: CommandCall[TrainConfig], resume: str | None, init_from: str | None) -> RunStart:
    """Raises ConfigError, AbsentError or DataError."""
    initial = paths.find_checkpoint(init_from) if init_from is not None else None
    known = known_options(initial) if initial else {}
    base, default_for = preset_for([ConfigSource("checkpoint", known), *call.sources])
    if initial:
        base = replace(base, origin=f"{base.origin}; network of {init_from}", values={**base.values, **known})
    config = with_absolute_paths(call.resolve(base))
    with named_sources(call.sources):
        for name in NETWORK_OPTIONS:
            if (value := getattr(config, name)) != known.get(name, value):
                raise OptionError(flag_name(name), value, f": {init_from} has {known[name]}; leave it out")
    with named_sources(call.sources):
        run_dir = paths.new_run_dir(config.run or time.strftime(f"{config.preset}-%Y%m%d-%H%M%S"))
    if resume:
        call.console.log(f"run {run_dir.name} does not exist yet; starting it")
    call.console.log(base.origin + (f" (the default for {default_for})" if default_for else ""))
    return RunStart(config, run_dir, initial=initial)


def known_options(checkpoint: Path) -> dict[str, Any]:
    """The network of a checkpoint, and the images it was trained on. Raises AbsentError or DataError."""
    from rjem_cli.engine.models.checkpoint import read_info, with_data_paths

    config = with_data_paths(read_info(checkpoint), checkpoint).config
    images = ("data", "test_data") if config.data else ("dataset",)
    return {name: getattr(config, name) for name in (*NETWORK_OPTIONS, *images, "image_size")}


def find_run_to_resume(sources: list[ConfigSource], resume: str) -> Path | None:
    """The folder of the run that `resume` names; for "auto" of the one that --run names, else of the newest. None if
    "auto" and --run name a new run. Raises AbsentError, and ConfigError for two names."""
    name = strongest_value(sources, "run")
    if resume == "":
        raise ConfigError("--resume '': give a name")
    if resume != "auto" and name is not None and name != resume:
        raise OptionError("--run", name, f": --resume {resume} names another run; give one, or --resume auto")
    if resume != "auto" or name is None:
        return paths.find_resumable(None if resume == "auto" else resume)
    run_dir = paths.named_run_dir(str(name))
    return run_dir if paths.checkpoints_in(run_dir) else None


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """So that the run can be resumed from another working directory."""
    return replace(config, data=paths.absolute(config.data), test_data=paths.absolute(config.test_data))


@contextlib.contextmanager
def named_sources(sources: list[ConfigSource]) -> Iterator[None]:
    """An OptionError names the flag, variable or file that its value came from."""
    try:
        yield
    except OptionError as error:
        raise locate(error, sources) from None


def shell_name(run_dir: Path) -> str:
    """The run's name for a command line, or its path if the name alone would mean something else."""
    is_name = run_dir.parent in (paths.runs_dir(), paths.runs_dir().resolve()) and not Path(run_dir.name).exists()
    return shlex.quote(run_dir.name if is_name else str(run_dir))


def how_to_resume(run_dir: Path) -> str:
    return f"resume with: rjem train --resume {shell_name(run_dir)}"
