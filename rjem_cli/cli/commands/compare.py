"""`rjem compare`: runs, checkpoints, samples and published results in one table; and the paper's table reproduced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rjem_cli import paths
from rjem_cli.cli.console import Console
from rjem_cli.cli.options import CommandCall, with_options
from rjem_cli.cli.stopping import interrupted, stop_on_signals
from rjem_cli.config.fields import given_flags
from rjem_cli.config.scoring import SUFFIXES, CompareConfig
from rjem_cli.errors import ConfigError
from rjem_cli.files import check_output_file, write_atomically

if TYPE_CHECKING:
    from rjem_cli.engine.compare.rows import Comparison


@with_options(CompareConfig)
def compare(
    call: CommandCall[CompareConfig],
    subjects: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="A B C",
            help="Runs, checkpoints, pretrained models (cifar10-16), and samples from any source (folder, .npz, .tar, "
            ".zip, digits:test).",
            autocompletion=paths.model_names,
        ),
    ] = None,
) -> None:
    """Compare runs, checkpoints and samples in one table of quality, accuracy and cost.

    Measurements are cached. The best score of a column is marked if its rows share a protocol. With --reproduce table1
    the paper's three models are trained first, with the same network, seeds and budget.

    Examples:

      rjem compare my-run other-run samples/ --published

      rjem compare a.npz b.npz --reference cifar10:train -o table.tex

      rjem compare --reproduce table1 --seeds 3 --published --html report.html
    """
    console, config = call.console, call.resolve()
    names = list(dict.fromkeys(subjects or []))
    check_options(config, names, call.as_json)
    checkpoints = {name: paths.find_checkpoint_or_images(name) for name in names}

    from rjem_cli.engine.compare.cache import CompareCallbacks
    from rjem_cli.engine.compare.comparison import build_report, describe_plan, run_comparison
    from rjem_cli.engine.compare.reproduce import build_trainings, describe_trainings
    from rjem_cli.engine.training.progress import Stopped

    trainings = build_trainings(config) if config.reproduce else []
    plan = describe_trainings(trainings, config.sample_count) if trainings else []
    with stop_on_signals(console.log) as stop, console.progress_bar() as bar:
        callbacks = CompareCallbacks(console.log, console.warn, bar.update, stop, console.binary_input)
        plan += describe_plan(config, checkpoints, callbacks) if call.dry_run else []
        for line in plan:
            console.log(line)
        if call.dry_run:
            if call.as_json:
                console.document({"plan": plan})
            return
        check_files(config)
        try:
            comparison = run_comparison(config, checkpoints, trainings, callbacks)
            command = ["rjem", "compare", *names, *given_flags(config)]
            report = build_report(config, comparison, command, callbacks) if config.html else ""
        except Stopped:
            raise interrupted(stop, "stopped; run the same command again to resume") from None
    show_table(comparison, config, call.as_json, console)
    if config.html:
        write_atomically(paths.expand(config.html), report.encode())
        console.log(f"report: {paths.expand(config.html).absolute()}")


def check_options(config: CompareConfig, names: list[str], as_json: bool) -> None:
    """Raises ConfigError for options that do not go together."""
    if not (names or config.published or config.reproduce):
        raise ConfigError("nothing to compare; give runs, checkpoints, samples, --published, or --reproduce table1")
    if config.model:
        raise ConfigError(f"--model {config.model}: compare tests checkpoints only; give samples of your network")
    if config.reproduce and not names and config.mode != CompareConfig.mode:
        raise ConfigError("--mode only applies to runs and checkpoints; --reproduce table1 samples as the paper does")
    if config.output and config.form == "table" and not as_json:
        raise ConfigError(f"-o {config.output}: give --format, or a name that ends in {', '.join(SUFFIXES)}")


def check_files(config: CompareConfig) -> None:
    """Raises ConfigError or RjemError for output files that cannot be written."""
    files = [(flag, paths.expand(file)) for flag, file in (("-o", config.output), ("--html", config.html)) if file]
    for flag, path in files:
        check_output_file(flag, path)
    if len(files) == 2 and files[0][1].resolve() == files[1][1].resolve():
        raise ConfigError(f"-o and --html both name {files[0][1]}; give two files")


def show_table(comparison: Comparison, config: CompareConfig, as_json: bool, console: Console) -> None:
    """A table on a terminal, TSV in a pipe or with --quiet, or the format that was given."""
    from rjem_cli.engine.compare.formats import STAR, WRITERS, format_starred_cells, split_columns
    from rjem_cli.engine.compare.notes import all_notes

    form = "json" if as_json else config.form
    if form == "table" and console.on_terminal and not console.quiet:
        tables = [format_starred_cells(*part) for part in split_columns(comparison.rows, console.width())]
        for table in tables:
            console.table("", *table)
        if any(cell.endswith(STAR) for _, rows in tables for row in rows for cell in row[1:]):
            console.log(f"{STAR} best of its column, and scores within the deviations of the best")
    elif config.output:
        write_atomically(paths.expand(config.output), WRITERS[form](comparison).encode())
        console.result(str(paths.expand(config.output).absolute()))
    else:
        console.result(WRITERS[form](comparison).rstrip("\n"))
    if form == "table":
        for note in all_notes(comparison):
            console.log(f"note: {note}")
