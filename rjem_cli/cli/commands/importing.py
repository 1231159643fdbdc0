"""`rjem import`: make a run of a checkpoint of another project."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rjem_cli import paths
from rjem_cli.cli.console import Console
from rjem_cli.cli.formatting import format_bytes
from rjem_cli.cli.options import CommandCall, with_options
from rjem_cli.config.exchange import ImportConfig
from rjem_cli.errors import pluralize

if TYPE_CHECKING:
    from rjem_cli.engine.exchange.importer import ImportedRun
    from rjem_cli.engine.exchange.recognise import ForeignNetwork

MAX_NAMES = 120  # characters


@with_options(ImportConfig)
def import_file(
    call: CommandCall[ImportConfig],
    file: Annotated[str, typer.Argument(metavar="FILE", help="A .pt, .pth or .safetensors file.", show_default=False)],
    name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Name of the new run [the file's name].")
    ] = None,
) -> None:
    """Import a checkpoint of JEM, JEM++, SADA-JEM, DAT, TRADES or MadryLab's robustness as a run.

    Nothing in the file is executed. The network is then checked on test images.

    Examples:

      rjem import CIFAR10_MODEL.pt --as jem

      rjem import best_valid_ckpt.pt --layout jempp --recompute-statistics

      rjem import model_bestfid.pth --layout dat --as dat
    """
    console, config, path = call.console, call.resolve(), paths.expand(file)
    run_dir = paths.new_run_dir(name if name is not None else path.stem)

    from rjem_cli.engine.exchange.importer import import_network, read_network, summarize, write_run
    from rjem_cli.engine.runtime import scoring_runtime
    from rjem_cli.files import locked

    runtime = scoring_runtime(config.device)
    network = read_network(path, config)
    log_network(network, path, console)
    if call.dry_run:
        console.log(f"would write {run_dir}: config.yaml, checkpoints, summary.json")
        return
    with locked(run_dir, wait=False):
        with console.progress_bar() as bar:
            run = import_network(path, config, network, runtime, console.warn, bar.update)
        checkpoint = write_run(run, run_dir, runtime, console.log)
    if call.as_json:
        console.document({"checkpoint": str(checkpoint), **summarize(run, runtime)})
        return
    show_check(run, console)
    console.result(str(checkpoint))


def log_network(network: ForeignNetwork, path: Path, console: Console) -> None:
    match = network.match
    norm = "no normalisation" if match.options.norm_layer == "none" else f"{match.options.norm_layer} norm"
    place = f", from {network.place}" if network.place else ""
    shape = f"{match.options.architecture} ({norm}), {match.classes} classes"
    console.log(f"read {path.name}: layout {match.layout.name}{place}, {shape}")
    if network.buffer is not None:
        console.log(f"replay buffer: {len(network.buffer)} images")
    from rjem_cli.engine.exchange.recognise import MU_SIGMA

    if unused := {name: part for name, part in network.unused.items() if name not in MU_SIGMA}:
        names = ", ".join(sorted({name.rpartition(".")[0] or name for name in unused}))
        size = format_bytes(sum(part.nbytes for part in unused.values()))
        console.log(f"not used by the network: {names[:MAX_NAMES]} ({pluralize(len(unused), 'tensor')}, {size})")
    for note in network.notes:
        console.note(note)


def show_check(run: ImportedRun, console: Console) -> None:
    check, splits = run.check, run.splits
    rows = []
    if run.before is not None:
        rows.append(("accuracy before", f"{run.before.value:.2%}", f"{run.before.count} test images"))
    rows.append(("accuracy", f"{check.accuracy.value:.2%}", f"{check.accuracy.count} test images"))
    rows.append(("E(x) of data", f"{check.energy_data:.3f}", f"{check.accuracy.count} test images"))
    if check.energy_buffer is not None:
        rows.append(("E(x) of chains", f"{check.energy_buffer:.3f}", "replay buffer"))
    console.table(f"Check on {splits.name}", ("metric", "value", "measured on"), rows)
    if better := check.better_range:
        console.warn(
            f"with images in {better}, accuracy is {check.ranges[better]:.1%} and not {check.own:.1%}: the network was "
            "trained with another input range; try another --layout"
        )
