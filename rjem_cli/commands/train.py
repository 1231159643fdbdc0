"""`rjem train`: train a Robust JEM, or any of its special cases, on a built-in data set or on your images."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from rjem_cli import paths
from rjem_cli.config import TrainConfig
from rjem_cli.errors import InterruptedRunError, RjemError
from rjem_cli.interface.board import Board
from rjem_cli.interface.console import talk
from rjem_cli.interface.deadline import Deadline
from rjem_cli.interface.options import Call, with_knobs
from rjem_cli.interface.resuming import how_to_go_on, settle_run
from rjem_cli.interface.signals import stop_on_signals
from rjem_cli.interface.training_view import (
    announce,
    announce_forecast,
    announce_inputs,
    curves_left_behind,
    show_progress,
    show_result,
    show_stopped,
    where,
)

if TYPE_CHECKING:
    from rjem_cli.engine.training.progress import Progress


@with_knobs(TrainConfig, ranks=True)
def train(
    call: Call[TrainConfig],
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
            help="Write scalars, histograms and pictures for TensorBoard too; a run that has some goes on with them.",
        ),
    ] = False,
    max_time: Annotated[
        str | None,
        typer.Option(metavar="25m", help="Save and stop by itself before this time is over: 90s, 25m, 1h30m."),
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
    console, ranks, deadline = call.console, call.ranks, Deadline("--max-time", max_time)
    config, run_dir, checkpoint = ranks.from_first(lambda: settle_run(call, resume))
    if data := config.data:
        ranks.jointly(lambda: paths.existing_data(data))
    announce(config, run_dir, console)
    begin = paths.step_of(checkpoint) if checkpoint else 0
    if checkpoint:
        console.say(f"goes on from step {begin}")

    from rjem_cli.engine.data.load import load_splits
    from rjem_cli.engine.report import tensorboard as events
    from rjem_cli.engine.runtime import start_runtime
    from rjem_cli.engine.training.forecast import DataShape, forecast
    from rjem_cli.engine.training.run import run_training

    with_events = ranks.from_first(lambda: events.is_wanted(tensorboard, run_dir, console.warn))
    runtime = ranks.jointly(lambda: start_runtime(config, ranks=ranks))
    runtime.check_ranks()
    if call.dry_run:
        shape = ranks.in_turn(lambda: DataShape.of(config))
        start_up = call.seconds_so_far()
        console.say("times a few steps of this network; a large one takes a minute or two")
        announce_forecast(forecast(config, shape, runtime, begin), start_up, runtime, console)
        return
    with console.bar() as bar:

        def fetching(done: int, total: int) -> None:
            if deadline.is_near():
                raise RjemError(f"--max-time {max_time} was over before {config.dataset} was fetched; give more")
            bar.update(f"fetching {config.dataset}", done, total)

        splits = ranks.in_turn(lambda: load_splits(config, fetching, console.warn))
    announce_inputs(splits, runtime, console)
    board = Board()
    opening = partial(events.event_file, run_dir, begin, talk) if with_events else contextlib.nullcontext
    with (
        curves_left_behind(run_dir, console, ranks.is_first),
        ranks.opened_by_first(opening) as write_event,
        stop_on_signals(console.say) as stop,
        console.bar(board.table) as bar,
    ):

        def watch(progress: Progress) -> None:
            deadline.tick()
            show_progress(progress, bar, board, console)
            if write_event:
                write_event(progress)

        result = run_training(
            config,
            splits,
            runtime,
            run_dir,
            resume=checkpoint,
            watch=watch,
            should_stop=lambda: stop() or deadline.is_near(),
        )
    if result.finished:
        show_result(result, run_dir, console)
    elif number := max(ranks.each(stop.signal_number or 0)):
        raise InterruptedRunError(f"stopped {where(result)}; {how_to_go_on(run_dir)}", number)
    else:
        show_stopped(result, f"--max-time {max_time}: stopped {where(result)}", run_dir, console)
