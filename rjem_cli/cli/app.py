"""The Typer app: root options and the list of commands, nothing else."""

from typing import Annotated

import typer

from rjem_cli import __version__
from rjem_cli.cli.commands.attack import attack
from rjem_cli.cli.commands.cache import cache
from rjem_cli.cli.commands.compare import compare
from rjem_cli.cli.commands.completion import completion
from rjem_cli.cli.commands.env import env
from rjem_cli.cli.commands.evaluate import evaluate
from rjem_cli.cli.commands.exporting import export
from rjem_cli.cli.commands.generate import generate
from rjem_cli.cli.commands.importing import import_file
from rjem_cli.cli.commands.langevin import langevin
from rjem_cli.cli.commands.runs import runs
from rjem_cli.cli.commands.train import train
from rjem_cli.cli.console import Console
from rjem_cli.cli.help import SectionedCommand, TrainCommand

app = typer.Typer(
    name="rjem",
    help="Robust JEM: one network as classifier, robust classifier and energy-based generator.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
app.command("train", cls=TrainCommand, short_help="Train a network, or resume a run.")(train)
app.command("attack", cls=SectionedCommand, short_help="Measure accuracy under attack.")(attack)
app.command("langevin", cls=SectionedCommand, short_help="Run and show Langevin chains.")(langevin)
app.command("generate", cls=SectionedCommand, short_help="Generate images of chosen classes.")(generate)
app.command("eval", cls=SectionedCommand, short_help="Score samples, or a checkpoint.")(evaluate)
app.command("compare", cls=SectionedCommand, short_help="Compare runs and samples.")(compare)
app.command("import", cls=SectionedCommand, short_help="Import a checkpoint of another project.")(import_file)
app.command("export", cls=SectionedCommand, short_help="Write a checkpoint for another project.")(export)
app.add_typer(runs, short_help="List, show and remove runs.")
app.add_typer(cache, short_help="List and remove cached files.")
app.command(short_help="Show versions, devices and folders.")(env)
app.command(short_help="Print a shell's completion script.")(completion)


def show_version(is_given: bool) -> None:
    if is_given:
        Console().result(f"rjem {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Robust JEM: one network as classifier, robust classifier and energy-based generator."""
