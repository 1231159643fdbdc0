"""`rjem train`: train a Robust JEM, or any of its special cases, on a built-in data set or on your images."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rjem_cli import paths
from rjem_cli.config import TrainConfig
from rjem_cli.errors import ConfigError, InterruptedRunError
from rjem_cli.interface.options import Call, with_knobs
from rjem_cli.interface.settings import Layer, preset_layer, preset_names
from rjem_cli.interface.signals import StopRequest, stop_on_signals
from rjem_cli.interface.training_view import announce, show_progress, show_result

if TYPE_CHECKING:
    from rjem_cli.engine.training.trainer import Progress

DEFAULT_PRESET = "quickstart"


@with_knobs(TrainConfig)
def train(
    call: Call[TrainConfig],
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help=f"{', '.join(preset_names())} [{DEFAULT_PRESET}].", autocompletion=preset_names
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="auto|RUN", help="Go on with this run (auto: --run, or the newest).", autocompletion=paths.run_names
        ),
    ] = None,
) -> None:
    """Train one network as classifier, robust classifier and generator.

    Values: flag > RJEM_... variable > --config file > --preset > default. Without --preset the preset is quickstart;
    the defaults in brackets hold where no preset changes them. See --print-config.

    Examples:

      rjem train --preset quickstart

      rjem train --preset cifar10-small --data cifar10-train.tar.xz --adv-eps 8/255
    """
    console = call.console
    for name, value in (("--preset", preset), ("--resume", resume)):
        if value == "":
            raise ConfigError(f"{name} '': give a name")
    if resume and preset:
        raise ConfigError("--preset cannot change a run that is resumed; give single flags, such as --epochs")
    resumed = paths.find_resumable(resume, call.flags.get("run", os.environ.get("RJEM_RUN"))) if resume else None
    base = run_layer(resumed) if resumed else preset_layer(preset or DEFAULT_PRESET)
    config = call.settle(base)
    # a run is resumed, and its prior fitted again, from wherever the user stands then
    config = replace(config, data=paths.absolute(config.data), test_data=paths.absolute(config.test_data))
    run_dir = resumed or paths.new_run_dir(config.run or time.strftime(f"{preset or DEFAULT_PRESET}-%Y%m%d-%H%M%S"))
    console.say(f"{base.origin}{'' if preset or resumed else ' (the default)'}")
    announce(config, run_dir, console)
    if resumed:
        console.say(f"goes on from step {paths.step_of(paths.checkpoints_in(resumed)[-1])}")
    if config.data:
        paths.existing_data(config.data)  # also for --dry-run, which reads nothing
    if call.dry_run:
        return

    from rjem_cli.engine.data.load import load_splits
    from rjem_cli.engine.runtime import start_runtime
    from rjem_cli.engine.training.run import run_training

    runtime = start_runtime(config.device, config.precision)
    splits = load_splits(config)
    sizes = f"{len(splits.train)} + {len(splits.val)} + {len(splits.test)} images (train, val, test)"
    console.say(f"device: {runtime.describe()}")
    console.say(f"data: {splits.name}, {sizes}")
    with stop_on_signals(console.say) as stop, console.bar() as bar:

        def watch(progress: Progress) -> None:
            if stop() and progress.phase != "training":  # the checkpoint is written; only its table is not
                raise interrupted("stopped after the last step, before its table", run_dir, stop)
            show_progress(progress, bar)

        result = run_training(
            config, splits, runtime, run_dir, resume=resumed is not None, watch=watch, should_stop=stop
        )
    if not result.finished:
        raise interrupted(f"stopped at step {result.summary['step']} of {result.summary['steps']}", run_dir, stop)
    show_result(result, console)


def interrupted(what: str, run_dir: Path, stop: StopRequest) -> InterruptedRunError:
    assert stop.signal_number is not None
    name = run_dir.name if run_dir.parent == paths.runs_dir() else str(run_dir)
    return InterruptedRunError(f"{what}; go on with: rjem train --resume {name}", stop.signal_number)


def run_layer(run_dir: Path) -> Layer:
    """A resumed run starts from the config inside its newest checkpoint instead of a preset."""
    from rjem_cli.engine.model.checkpoint import read_info

    return Layer(f"run {run_dir.name}", read_info(paths.checkpoints_in(run_dir)[-1]).config.to_dict())
