"""Which run is trained, a new one or one that goes on: its settings, its folder, and the words for how to go on."""

from __future__ import annotations

import shlex
import time
from dataclasses import replace
from pathlib import Path

from rjem_cli import paths
from rjem_cli.config import TrainConfig
from rjem_cli.errors import AbsentError, ConfigError
from rjem_cli.interface.console import Console
from rjem_cli.interface.options import Call
from rjem_cli.interface.settings import Layer, preset_for, value_in


def settle_run(call: Call[TrainConfig], resume: str | None) -> tuple[TrainConfig, Path, Path | None]:
    """(config, run folder, checkpoint to resume from or None). Raises ConfigError, AbsentError or DataError."""
    if resume == "":
        raise ConfigError("--resume '': give a name")
    run_dir = resumed_run(call, resume) if resume else None
    checkpoint = newest_checkpoint(run_dir, call.console) if run_dir else None
    base, default_for = (run_layer(checkpoint), "") if checkpoint else preset_for(call.layers)
    if checkpoint and run_dir:
        check_preset(run_dir, base.values["preset"], value_in(call.layers, "preset"))
    config = call.settle(base)
    # a run is resumed, and its prior fitted again, from wherever the user stands then
    config = replace(config, data=paths.absolute(config.data), test_data=paths.absolute(config.test_data))
    if run_dir and checkpoint:
        check_resumable(run_dir, checkpoint, config)
    call.console.say(f"{base.origin}{f' (the default for {default_for})' if default_for else ''}")
    name = config.run or time.strftime(f"{config.preset}-%Y%m%d-%H%M%S")
    return config, run_dir or paths.new_run_dir(name), checkpoint


def resumed_run(call: Call[TrainConfig], resume: str) -> Path | None:
    """Folder of the run to resume: the one that `resume` names; for "auto" the one that --run names, else the newest.
    None if "auto" and --run name a new run. Raises AbsentError, and ConfigError for two names."""
    name = value_in(call.layers, "run")
    if resume == "auto" and name and paths.find_run(name) is None:
        call.console.say(f"run {name} does not exist yet; starting it")
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
    from rjem_cli.engine.training.checkpoints import latest_valid

    return latest_valid(run_dir, console.warn)


def run_layer(checkpoint: Path) -> Layer:
    """A resumed run starts from the config inside its checkpoint instead of a preset."""
    from rjem_cli.engine.model.checkpoint import placed, read_info

    info = placed(read_info(checkpoint), checkpoint)
    return Layer(f"run {checkpoint.parent.parent.name}", info.config.to_dict())


def check_resumable(run_dir: Path, checkpoint: Path, config: TrainConfig) -> None:
    """Also for --dry-run. Raises AbsentError where the run's own images are nowhere, ConfigError for settings that its
    state cannot go on with."""
    from rjem_cli.engine.model.checkpoint import read_info
    from rjem_cli.engine.training.run import check_settings

    info = read_info(checkpoint)
    check_settings(run_dir.name, info.config, config)
    if info.own_images and not config.data:
        raise AbsentError(f"no config.yaml of its run says where {info.data_name} is; say it with --data")


def name_of(run_dir: Path) -> str:
    """By which commands find it, also where something else here is called so."""
    known = run_dir.parent in (paths.runs_dir(), paths.runs_dir().resolve()) and not Path(run_dir.name).exists()
    return shlex.quote(run_dir.name if known else str(run_dir))


def how_to_go_on(run_dir: Path) -> str:
    return f"go on with: rjem train --resume {name_of(run_dir)}"
