"""`rjem runs`: trained models."""

from typing import Annotated, Any

import typer

from rjem_cli import paths, storage
from rjem_cli.cli.console import Console
from rjem_cli.cli.formatting import format_bytes
from rjem_cli.cli.help import show_group_help
from rjem_cli.cli.options import AsJson
from rjem_cli.cli.removal import DryRemoval, Yes, remove_entries, to_dict, total_size, usage_cells
from rjem_cli.storage import RunEntry

SCORES = {"test_accuracy": "accuracy", "robust_accuracy": "robust accuracy"}
HIGHLIGHTS = (
    "preset image_size arch depth width norm_layer adv_eps pgd_steps px_weight sgld_steps "
    "sample_steps attack_eps attack_steps contrast seed"
).split()

runs = typer.Typer(
    name="runs",
    help="List, show and remove trained runs.",
    rich_markup_mode=None,
    invoke_without_command=True,
    callback=show_group_help,
)
NAME = typer.Argument(metavar="NAME", help="A name from rjem runs ls.", autocompletion=storage.run_folder_names)
NAMES = typer.Argument(metavar="NAME...", help="Names from rjem runs ls.", autocompletion=storage.run_folder_names)


@runs.command("dir", short_help="Print the folder of all runs.")
def directory() -> None:
    """Print the folder of all runs: `runs` in RJEM_HOME, else in the platform's folder for user data.

    Examples:

      rjem runs dir

      tensorboard --logdir "$(rjem runs dir)"
    """
    Console().result(str(paths.runs_dir()))


@runs.command("ls", short_help="List runs, their progress and scores.")
def list_all(as_json: AsJson = False) -> None:
    """List runs and pretrained models with their progress, data, test accuracy, size and last change.

    Examples:

      rjem runs ls

      rjem runs ls --json | jq -r '.runs[] | select(.finished | not).name'
    """
    console, entries = Console(as_json=as_json), storage.list_runs()
    size = total_size([run for run in entries if not run.is_pretrained])
    folder = str(paths.runs_dir())
    if as_json:
        console.document({"folder": folder, "bytes": size, "runs": list(map(describe_run, entries))})
        return
    show_runs(entries, console)
    console.log(f"{format_bytes(size)} in {folder}")


@runs.command("show", short_help="Show one run: config, scores, checkpoints.")
def show(name: Annotated[str, NAME], as_json: AsJson = False) -> None:
    """Show a run: its main options, its scores and its checkpoints; for a pretrained model also its model card.

    Examples:

      rjem runs show first

      rjem runs show cifar10-16 --json | jq .config.lr
    """
    console, (run,) = Console(as_json=as_json), storage.select_runs([name])
    checkpoints = [(path, paths.parse_step(path), storage.measure([path])) for path in run.checkpoints]
    if as_json:
        files = [{"path": str(path), "step": step, "bytes": usage.size} for path, step, usage in checkpoints]
        details = {"config": run.config, "summary": run.summary, "checkpoints": files, "card": run.card or None}
        console.document({**describe_run(run), **details})
        return
    rows = [("folder", str(run.path)), ("data", run.data), ("progress", run.progress), ("state", run.state)]
    rows += [(name, str(run.config[name])) for name in HIGHLIGHTS if run.config.get(name) is not None]
    known = [name for name in SCORES if run.accuracy(name) is not None]
    rows += [(SCORES[name], describe_score(run.summary[name])) for name in known]
    console.table(run.name, ("what", "value"), rows)
    if run.card:
        console.table("Model card", ("what", "value"), [(key, str(value)) for key, value in run.card.items()])
    cells = [
        (str(path.relative_to(run.path)), str(step), *usage_cells(usage, console)) for path, step, usage in checkpoints
    ]
    console.table("Checkpoints", ("checkpoint", "step", "size", "changed"), cells)


@runs.command("rm", short_help="Remove runs with their checkpoints.")
def remove(
    names: Annotated[list[str], NAMES], yes: Yes = False, dry_run: DryRemoval = False, as_json: AsJson = False
) -> None:
    """Remove runs and all their checkpoints, for good. A run that another process trains is not removed.

    Examples:

      rjem runs rm first

      rjem runs rm quickstart-20260101-120000 wider --yes
    """
    console, entries = Console(as_json=as_json), storage.select_runs(names)
    remove_entries(entries, lambda: show_runs(entries, console), console, ask=not yes, dry_run=dry_run)


def show_runs(entries: list[RunEntry], console: Console) -> None:
    columns = ("name", "progress", "state", "data", *SCORES.values(), "size", "changed")
    rows = []
    for run in entries:
        scores = ("" if (value := run.accuracy(name)) is None else f"{value:.2%}" for name in SCORES)
        rows.append((run.name, run.progress, run.state, run.data, *scores, *usage_cells(run.usage, console)))
    console.table("", columns, rows)


def describe_run(run: RunEntry) -> dict[str, Any]:
    progress = {"data": run.data, "step": run.step, "steps": run.steps, "finished": run.is_finished}
    progress |= {"pretrained": run.is_pretrained}
    return {**to_dict(run), **progress, **{name: run.accuracy(name) for name in SCORES}}


def describe_score(score: dict[str, Any]) -> str:
    count = f" ({score['count']} of {score['of']} images)" if {"count", "of"} <= score.keys() else ""
    return f"{score['value']:.2%}{count}" + (f"; {score['attack']}" if "attack" in score else "")
