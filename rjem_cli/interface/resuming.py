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
from rjem_cli.interface.settings import Layer, default_preset, preset_layer, settle, value_in
from rjem_cli.knobs import flag_name


def settle_run(
    call: Call[TrainConfig], preset: str | None, resume: str | None
) -> tuple[TrainConfig, Path, Path | None]:
    """(config, the run's folder, the checkpoint to go on from, None for a new run). Raises ConfigError, AbsentError or
    DataError."""
    for name, value in (("--preset", preset), ("--resume", resume)):
        if value == "":
            raise ConfigError(f"{name} '': give a name")
    run_dir = resumed_run(call, resume) if resume else None
    checkpoint = newest_checkpoint(run_dir, call.console) if run_dir else None
    if checkpoint:
        base, note = run_layer(checkpoint), ""
    else:
        dataset, data = value_in(call.layers, "dataset"), value_in(call.layers, "data")
        base = preset_layer(preset or default_preset(dataset, data))
        note = "" if preset else f" (the default for {'--data' if data else dataset or base.values['dataset']})"
    config = call.settle(base)
    # a run is resumed, and its prior fitted again, from wherever the user stands then
    config = replace(config, data=paths.absolute(config.data), test_data=paths.absolute(config.test_data))
    if run_dir and checkpoint:
        check_resumable(run_dir, checkpoint, config)
        if preset:
            check_preset(call, preset, run_dir, config)
    call.console.say(f"{base.origin}{note}")
    name = config.run or time.strftime(f"{base.origin.removeprefix('preset ')}-%Y%m%d-%H%M%S")
    return config, run_dir or paths.new_run_dir(name), checkpoint


def resumed_run(call: Call[TrainConfig], resume: str) -> Path | None:
    """The folder of the run that `resume` names, or for "auto" that --run names, else of the newest. None for "auto"
    and a run that is yet to begin: a cluster starts a job again with the same command line. Raises AbsentError, and
    ConfigError for two names."""
    name = value_in(call.layers, "run")
    if resume == "auto" and name and paths.find_run(name) is None:
        call.console.say(f"run {name} does not exist yet; it is started")
        return None
    if resume == "auto":
        return paths.find_resumable(name)
    if name and name != resume:
        raise ConfigError(f"--resume {resume} and --run {name} name two runs; give one, or --resume auto --run {name}")
    return paths.find_resumable(resume)


def check_preset(call: Call[TrainConfig], preset: str, run_dir: Path, config: TrainConfig) -> None:
    """Raises ConfigError where the preset is not the run's own: where it would change a value that no flag, variable or
    file gives."""
    layer = preset_layer(preset)
    wanted = settle(TrainConfig, [layer, *call.layers]).config
    for name in layer.values:
        own, other = getattr(config, name), getattr(wanted, name)
        if own != other:
            raise ConfigError(
                f"--preset {preset} has {flag_name(name)} {other}, run {run_dir.name} has {own}; leave --preset out, "
                f"or give {flag_name(name)} {own}"
            )


def newest_checkpoint(run_dir: Path, console: Console) -> Path:
    """The newest that is whole; says which are not. Raises DataError where there is none."""
    from rjem_cli.engine.training.checkpoints import newest_valid

    return newest_valid(run_dir, console.warn)


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
