"""Which run is trained, a new one or one that goes on: its settings, its folder, and the words for how to go on."""

from __future__ import annotations

import shlex
import time
from dataclasses import replace
from pathlib import Path

from rjem_cli import paths
from rjem_cli.cli.console import Console
from rjem_cli.cli.options import CommandCall
from rjem_cli.config import TrainConfig
from rjem_cli.config.sources import ConfigSource, preset_for, strongest_value
from rjem_cli.errors import AbsentError, ConfigError


def resolve_run(call: CommandCall[TrainConfig], resume: str | None) -> tuple[TrainConfig, Path, Path | None]:
    """(config, run folder, checkpoint to resume from or None). Raises ConfigError, AbsentError or DataError."""
    if resume == "":
        raise ConfigError("--resume '': give a name")
    run_dir = resumed_run(call, resume) if resume else None
    checkpoint = newest_checkpoint(run_dir, call.console) if run_dir else None
    base, default_for = (run_source(checkpoint), "") if checkpoint else preset_for(call.sources)
    if checkpoint and run_dir:
        check_preset(run_dir, base.values["preset"], strongest_value(call.sources, "preset"))
    config = call.resolve(base)
    # a run is resumed, and its prior fitted again, from wherever the user stands then
    config = replace(config, data=paths.absolute(config.data), test_data=paths.absolute(config.test_data))
    if run_dir and checkpoint:
        check_resumable(run_dir, checkpoint, config)
    call.console.log(f"{base.origin}{f' (the default for {default_for})' if default_for else ''}")
    name = config.run or time.strftime(f"{config.preset}-%Y%m%d-%H%M%S")
    return config, run_dir or paths.new_run_dir(name), checkpoint


def resumed_run(call: CommandCall[TrainConfig], resume: str) -> Path | None:
    """Folder of the run to resume: the one that `resume` names; for "auto" the one that --run names, else the newest.
    None if "auto" and --run name a new run. Raises AbsentError, and ConfigError for two names."""
    name = strongest_value(call.sources, "run")
    if resume == "auto" and name and paths.find_run(name) is None:
        call.console.log(f"run {name} does not exist yet; starting it")
        return None
    if resume == "auto":
        return paths.find_resumable(name)
    if name and name != resume:
        raise ConfigError(f"--resume {resume} and --run {name} name two runs; give one, or --resume auto --run {name}")
    return paths.find_resumable(resume)


def check_preset(run_dir: Path, own: str | None, given: str | None) -> None:
    """Raises ConfigError for another preset than the run's own, which would change nothing."""
    if given is not None and given != own:
        before = f"--preset {own}" if own else "no preset"
        raise ConfigError(
            f"--preset {given}: run {run_dir.name} was started with {before}; leave it out, or give single options"
        )


def newest_checkpoint(run_dir: Path, console: Console) -> Path:
    """The newest that is whole; says which are not. Raises DataError where there is none."""
    from rjem_cli.engine.training.checkpointing import latest_valid

    return latest_valid(run_dir, console.warn)


def run_source(checkpoint: Path) -> ConfigSource:
    """A resumed run starts from the config inside its checkpoint instead of a preset."""
    from rjem_cli.engine.models.checkpoint import read_info, with_data_paths

    info = with_data_paths(read_info(checkpoint), checkpoint)
    return ConfigSource(f"run {checkpoint.parent.parent.name}", info.config.to_dict())


def check_resumable(run_dir: Path, checkpoint: Path, config: TrainConfig) -> None:
    """Also for --dry-run. Raises AbsentError where the run's own images are nowhere, ConfigError for settings that its
    state cannot go on with."""
    from rjem_cli.engine.models.checkpoint import read_info
    from rjem_cli.engine.training.checkpointing import check_state_options

    info = read_info(checkpoint)
    check_state_options(run_dir.name, info.config, config)
    if info.user_images and not config.data:
        raise AbsentError(f"no config.yaml of its run says where {info.data_name} is; say it with --data")


def name_of(run_dir: Path) -> str:
    """By which commands find it, also where something else here is called so."""
    known = run_dir.parent in (paths.runs_dir(), paths.runs_dir().resolve()) and not Path(run_dir.name).exists()
    return shlex.quote(run_dir.name if known else str(run_dir))


def how_to_resume(run_dir: Path) -> str:
    return f"resume with: rjem train --resume {name_of(run_dir)}"
