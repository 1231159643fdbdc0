"""`rjem train`: train a Robust JEM, or any of its special cases, on a built-in data set or on your images."""

from __future__ import annotations

from typing import Annotated

import typer

from rjem_cli import paths
from rjem_cli.cli.options import CommandCall, with_options
from rjem_cli.cli.resume import resolve_run
from rjem_cli.cli.stopping import Deadline
from rjem_cli.cli.training import train_run
from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.distributed import process_group


@with_options(TrainConfig, several_processes=True)
def train(
    call: CommandCall[TrainConfig],
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="auto|RUN",
            help="Resume this run from its newest valid checkpoint. auto: resume --run, or start it if it does not "
            "exist; without --run, resume the newest run.",
            autocompletion=paths.run_names,
        ),
    ] = None,
    init_from: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Start a new run from the weights and the replay buffer of this run or checkpoint.",
            autocompletion=paths.model_names,
        ),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also log to TensorBoard. A resumed run keeps logging.")
    ] = False,
    max_time: Annotated[
        str | None, typer.Option(metavar="25m", help="Save and stop before this time is over: 90s, 25m, 1h30m.")
    ] = None,
) -> None:
    """Train one network as classifier, robust classifier and generator.

    Values: flag > RJEM_... variable > --config file > preset > default. Brackets show what this command line would use
    for a new run. --print-config shows all values and where each comes from.

    Examples:

      rjem train --adv-eps 0.1 --pgd-steps 15

      rjem train --data photos/ --adv-eps 8/255

      rjem train --dataset cifar10 --help

      rjem train --run night --resume auto --max-time 25m
    """
    with process_group() as distributed:
        start = resolve_run(call, resume, init_from) if distributed.is_main else None
        start = distributed.broadcast(start)
        assert start is not None, "the main process has one"
        train_run(call, start, distributed, tensorboard, Deadline("--max-time", max_time))
