"""The work of `rjem train`, from its plan to its result."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from rjem_cli import paths
from rjem_cli.cli import training_output
from rjem_cli.cli.options import CommandCall
from rjem_cli.cli.resume import RunStart
from rjem_cli.cli.stopping import Deadline, interrupted, stop_on_signals
from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.callbacks import noop
from rjem_cli.engine.distributed import Distributed
from rjem_cli.errors import RjemError

if TYPE_CHECKING:
    from rjem_cli.cli.console import Console
    from rjem_cli.engine.data.images import Splits
    from rjem_cli.engine.runtime import Runtime
    from rjem_cli.engine.training.progress import TrainingProgress


def train_run(
    call: CommandCall[TrainConfig], start: RunStart, distributed: Distributed, tensorboard: bool, deadline: Deadline
) -> None:
    """Train, or with --dry-run only estimate. Raises as `run_training` does, and InterruptedRunError after a signal."""
    config, run_dir, console = start.config, start.run_dir, call.console
    if config.data:
        paths.existing_data(config.data)
    training_output.log_plan(config, run_dir, console)

    from rjem_cli.engine.training.arithmetic import start_training_runtime
    from rjem_cli.engine.training.progress import TrainingCallbacks
    from rjem_cli.engine.training.run import run_training
    from rjem_cli.engine.training.tensorboard import event_writer

    runtime = start_training_runtime(config, start.resumed, distributed)
    if call.dry_run:
        show_estimate(call, config, start.resumed, runtime)
        return
    splits = load_images(config, distributed, deadline, console)
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
        result = run_training(
            config,
            splits,
            runtime,
            run_dir,
            resume=start.resumed is not None,
            initial=start.initial,
            callbacks=callbacks,
            distributed=distributed,
        )
    if result.finished:
        training_output.show_result(result, run_dir, console)
    elif stop():
        raise interrupted(stop, training_output.describe_stop(result, run_dir))
    elif distributed.is_main:
        training_output.show_stopped(result, f"--max-time {deadline.text}", run_dir, console)


def show_estimate(call: CommandCall[TrainConfig], config: TrainConfig, resumed: Path | None, runtime: Runtime) -> None:
    from rjem_cli.engine.data.downloads import describe_download
    from rjem_cli.engine.training.estimate import DataShape, estimate_training

    console = call.console
    if not config.data and (download := describe_download(config.dataset)):
        console.log(download)
    first_step, shape = paths.parse_step(resumed) if resumed else 0, DataShape.from_options(config)
    start_up = call.elapsed()
    console.log(shape.read_summary)
    training_output.warn_of_one_class(shape.classes, console)
    console.log(f"timing a few steps from step {first_step}; a large network takes a minute or two")
    training_output.log_estimate(estimate_training(config, shape, runtime, first_step), start_up, runtime, console)


def load_images(config: TrainConfig, distributed: Distributed, deadline: Deadline, console: Console) -> Splits:
    """Downloads what is missing, in the main process. Raises AbsentError, DataError, or RjemError if --max-time ends
    before that."""
    from rjem_cli.engine.data.load import load_splits

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
    return splits
