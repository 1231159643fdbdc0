"""`rjem compare`: runs, checkpoints and samples of any maker, a row each, beside the paper's; and the paper's table
again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rjem_cli import paths
from rjem_cli.cli.console import Console
from rjem_cli.cli.options import CommandCall, with_options
from rjem_cli.cli.reproduction import run_configs
from rjem_cli.cli.signals import stop_on_signals, stoppable
from rjem_cli.config import SUFFIXES, CompareConfig
from rjem_cli.config.fields import given_flags
from rjem_cli.errors import ConfigError
from rjem_cli.files import check_file_place, write_atomically

if TYPE_CHECKING:
    from rjem_cli.engine.compare.reproduce import Training
    from rjem_cli.engine.compare.rows import Comparison

KEPT = "stopped; what was trained and measured is kept, and the same command goes on"


@with_options(CompareConfig)
def compare(
    call: CommandCall[CompareConfig],
    subjects: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="A B C",
            help="Runs, checkpoints, and samples of any maker (folder, .npz, .tar, .zip, digits:test).",
            autocompletion=paths.run_names,
        ),
    ] = None,
) -> None:
    """Compare runs, checkpoints and samples: scores, accuracy, cost; the best of each column is marked where protocols
    agree. Runs and checkpoints are tested, and draw their samples first; what was measured once is kept.

    With --reproduce table1 the paper's three models are trained first, with one network, seed and budget.

    Examples:

      rjem compare my-run other-run samples/ --published

      rjem compare a.npz b.npz --reference cifar10:train -o table.tex

      rjem compare --reproduce table1 --seeds 3 --published --html report.html
    """
    console, config = call.console, call.resolve()
    names = list(dict.fromkeys(subjects or []))
    if not (names or config.published or config.reproduce):
        raise ConfigError("nothing to compare; give runs, checkpoints or samples, --published, or --reproduce table1")
    if config.reproduce and not names and config.mode != CompareConfig.mode:
        raise ConfigError("--mode goes with runs and checkpoints; the paper's table says how each model is sampled")
    if config.output and config.form == "table" and not call.as_json:
        raise ConfigError(f"-o {config.output}: give a --format, or a name that ends in {', '.join(SUFFIXES)}")
    found = {name: paths.find_checkpoint_or_images(name) for name in names}
    trainings, plan = announced(config, console) if config.reproduce else ([], [])

    from rjem_cli.engine.compare.cached import Work
    from rjem_cli.engine.compare.comparison import compared, page, planned

    with stop_on_signals(console.log) as stop, console.progress_bar() as bar:
        work = Work(console.log, console.warn, stoppable(bar, stop, KEPT), bar.update, stop, console.binary_input)
        if call.dry_run:
            for line in (lines := planned(config, found, work)):
                console.log(line)
            if call.as_json:
                console.document({"plan": [*plan, *lines]})
            return
        check_places(config)
        comparison = compared(config, found, trainings, work)
        html = (
            page(config, comparison, ["rjem", "compare", *names, *given_flags(config)], work) if config.html else None
        )
    show(comparison, config, call.as_json, console)
    if config.html and html:
        write_atomically(paths.expand(config.html), html.encode())
        console.log(f"page: {paths.expand(config.html).absolute()}")


def check_places(config: CompareConfig) -> None:
    """That what is asked for can be written once it is there."""
    given = [(flag, paths.expand(file)) for flag, file in (("-o", config.output), ("--html", config.html)) if file]
    for flag, path in given:
        check_file_place(flag, path)
    if len({path.resolve() for _, path in given}) < len(given):
        raise ConfigError(f"-o and --html both name {given[0][1]}; give two files")


def announced(config: CompareConfig, console: Console) -> tuple[list[Training], list[str]]:
    """The runs of a reproduction, and what is said of them: the length of each and where it stands."""
    from rjem_cli.engine.compare.reproduce import Training, described

    runs = run_configs(config)
    trainings = [Training(model, resolved, paths.runs_dir() / name) for name, model, resolved in runs]
    lines = list(described(trainings, config.sample_count))
    for line in lines:
        console.log(line)
    return trainings, lines


def show(comparison: Comparison, config: CompareConfig, as_json: bool, console: Console) -> None:
    """Tables on a terminal, TSV on a pipe and with --quiet, or the form that was asked for."""
    from rjem_cli.engine.compare import formats as forms

    written = forms.WRITTEN.get("json" if as_json else config.form)
    if written is None:
        if console.quiet or not console.on_terminal:
            console.tab_separated(*forms.plain_cells(comparison.rows))
        else:
            for some, columns in forms.pieces(comparison.rows, console.width()):
                console.table("", *forms.cells(some, columns, lambda value: f"{value} {forms.STAR}"))
            if any(forms.best_of(comparison.rows, column) for column in forms.columns_of(comparison.rows)):
                console.log(f"{forms.STAR} the best of its column, and what lies within the deviations")
        for note in forms.notes_of(comparison):
            console.log(f"note: {note}")
    elif config.output:
        path = paths.expand(config.output)
        write_atomically(path, written(comparison).encode())
        console.result(str(path.absolute()))
    else:
        console.result(written(comparison).rstrip("\n"))
