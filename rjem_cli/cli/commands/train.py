"""`rjem train`: train a Robust JEM, or any of its special cases, on a built-in data set or on your images."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from rjem_cli import paths
from rjem_cli.cli import training_output
from rjem_cli.cli.options import CommandCall, with_options
from rjem_cli.cli.resume import resolve_run
from rjem_cli.cli.stopping import Deadline, interrupted, stop_on_signals
from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.callbacks import noop
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
        train_run(call, distributed, resume, init_from, tensorboard, Deadline("--max-time", max_time))


def train_run(
    call: CommandCall[TrainConfig],
    distributed: Distributed,
    resume: str | None,
    init_from: str | None,
    tensorboard: bool,
    deadline: Deadline,
) -> None:
    console = call.console
    config, run_dir, checkpoint, initial = distributed.broadcast(
        resolve_run(call, resume, init_from) if distributed.is_main else None  # type: ignore[misc]
    )
    if config.data:
        paths.existing_data(config.data)
    training_output.log_plan(config, run_dir, console)

    from rjem_cli.engine.data.downloads import describe_download
    from rjem_cli.engine.data.load import load_splits
    from rjem_cli.engine.training.arithmetic import start_training_runtime
    from rjem_cli.engine.training.estimate import DataShape, estimate_training
    from rjem_cli.engine.training.progress import TrainingCallbacks
    from rjem_cli.engine.training.run import run_training
    from rjem_cli.engine.training.tensorboard import event_writer

    runtime = start_training_runtime(config, checkpoint, distributed)
    if call.dry_run:
        if not config.data and (download := describe_download(config.dataset)):
            console.log(download)
        first_step, shape = paths.parse_step(checkpoint) if checkpoint else 0, DataShape.from_options(config)
        start_up = call.elapsed()
        console.log(shape.read_summary)
        training_output.warn_of_one_class(shape.classes, console)
        console.log(f"timing a few steps from step {first_step}; a large network takes a minute or two")
        training_output.log_estimate(estimate_training(config, shape, runtime, first_step), start_up, runtime, console)
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
    training_output.log_inputs(splits, runtime, console)
    table = training_output.MetricsTable()
    with (
        event_writer(tensorboard, run_dir, console.warn) if distributed.is_main else nullcontext(noop) as write_events,
        stop_on_signals(console.log) as stop,
        console.progress_bar(table.table) as bar,
    ):

        def on_progress(progress: TrainingProgress) -> None:
            deadline.tick()
            training_output.show_progress(progress, bar, table)
            write_events(progress)

        callbacks = TrainingCallbacks(
            on_progress, console.log, console.warn, lambda: stop() or deadline.is_near(), deadline.note_save
        )
        resumed = checkpoint is not None
        result = run_training(
            config,
            splits,
            runtime,
            run_dir,
            resume=resumed,
            initial=initial,
            callbacks=callbacks,
            distributed=distributed,
        )
    if result.finished:
        training_output.show_result(result, run_dir, console)
    elif stop():
        raise interrupted(stop, training_output.describe_stop(result, run_dir))
    elif distributed.is_main:
        training_output.show_stopped(result, f"--max-time {deadline.text}", run_dir, console)
