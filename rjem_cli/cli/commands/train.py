"""`rjem train`: train a Robust JEM, or any of its special cases, on a built-in data set or on your images."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated

import typer

from rjem_cli import paths
from rjem_cli.cli.console import log
from rjem_cli.cli.deadline import Deadline
from rjem_cli.cli.metrics_table import MetricsTable
from rjem_cli.cli.options import CommandCall, with_options
from rjem_cli.cli.resume import how_to_resume, resolve_run
from rjem_cli.cli.signals import interrupted, stop_on_signals
from rjem_cli.cli.training_output import (
    announce,
    announce_estimate,
    announce_inputs,
    draw_curves_at_exit,
    show_progress,
    show_result,
    show_stopped,
    where,
)
from rjem_cli.config import TrainConfig
from rjem_cli.engine.distributed import Distributed, process_group
from rjem_cli.errors import RjemError

if TYPE_CHECKING:
    from rjem_cli.engine.training.progress import TrainingProgress


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
    tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard",
            help="Also log to TensorBoard. A resumed run keeps logging.",
        ),
    ] = False,
    max_time: Annotated[
        str | None,
        typer.Option(metavar="25m", help="Save and stop before this time is over: 90s, 25m, 1h30m."),
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
        train_run(call, distributed, resume, tensorboard, Deadline("--max-time", max_time))


def train_run(
    call: CommandCall[TrainConfig], distributed: Distributed, resume: str | None, tensorboard: bool, deadline: Deadline
) -> None:
    console = call.console
    config, run_dir, checkpoint = distributed.broadcast(
        resolve_run(call, resume) if distributed.is_main else None  # type: ignore[misc]
    )
    if config.data:
        paths.existing_data(config.data)
    announce(config, run_dir, console)
    begin = paths.parse_step(checkpoint) if checkpoint else 0
    if checkpoint:
        console.log(f"resuming at step {begin}")

    from rjem_cli.engine.data.load import load_splits
    from rjem_cli.engine.runtime import start_runtime
    from rjem_cli.engine.training.estimate import DataShape, estimate_training
    from rjem_cli.engine.training.progress import TrainingCallbacks
    from rjem_cli.engine.training.run import run_training
    from rjem_cli.engine.training.tensorboard import event_file, is_wanted

    with_events = distributed.is_main and is_wanted(tensorboard, run_dir, console.warn)
    runtime = start_runtime(config)
    if call.dry_run:
        shape, start_up = DataShape.of(config), call.elapsed()
        console.log("timing a few steps of this network; a large one takes a minute or two")
        announce_estimate(estimate_training(config, shape, runtime, begin), start_up, runtime, console)
        return
    with console.progress_bar() as bar:

        def on_download(phase: str, done: int, total: int) -> None:
            if deadline.is_near():
                raise RjemError(f"--max-time {deadline.text} ended before {config.dataset} was downloaded; give more")
            bar.update(phase, done, total)

        if not distributed.is_main:
            distributed.barrier()  # the main process downloads first
        splits = load_splits(config, on_download, console.warn)
        if distributed.is_main:
            distributed.barrier()
    announce_inputs(splits, runtime, console)
    table = MetricsTable()
    with (
        draw_curves_at_exit(run_dir, console) if distributed.is_main else contextlib.nullcontext(),
        event_file(run_dir, begin, log) if with_events else contextlib.nullcontext() as write_event,
        stop_on_signals(console.log) as stop,
        console.progress_bar(table.table) as bar,
    ):

        def on_progress(progress: TrainingProgress) -> None:
            deadline.tick()
            show_progress(progress, bar, table)
            if write_event:
                write_event(progress)

        result = run_training(
            config,
            splits,
            runtime,
            run_dir,
            resume=checkpoint is not None,
            callbacks=TrainingCallbacks(on_progress, console.log, console.warn, lambda: stop() or deadline.is_near()),
            distributed=distributed,
        )
    if result.finished:
        show_result(result, run_dir, console)
    elif stop():
        raise interrupted(stop, f"stopped {where(result)}; {how_to_resume(run_dir)}")
    elif distributed.is_main:
        show_stopped(result, f"--max-time {deadline.text}: stopped {where(result)}", run_dir, console)
