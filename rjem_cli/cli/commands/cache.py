"""`rjem cache`: what RJEM_HOME holds, and how it is made smaller."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from rjem_cli import paths, storage
from rjem_cli.cli.console import Console
from rjem_cli.cli.deadline import parse_duration
from rjem_cli.cli.formatting import format_age, format_bytes
from rjem_cli.cli.options import AsJson
from rjem_cli.errors import RjemError

cache = typer.Typer(
    name="cache",
    help="What RJEM_HOME holds (runs, data sets, features, ...): where it is, how large, and away with it.",
    rich_markup_mode=None,
)


@cache.callback(invoke_without_command=True)
def overview(context: typer.Context) -> None:
    """Show the help where no command is named, as a command of its own."""
    if context.invoked_subcommand is None:
        Console().result(context.get_help())


DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and stop.")]


@cache.command("dir", short_help="Print rjem's data directory.")
def directory() -> None:
    """Print the folder that holds everything.

    Examples:

      rjem cache dir

      du -sh "$(rjem cache dir)"/*
    """
    Console().result(str(paths.home()))


@cache.command("ls", short_help="List entries and sizes.")
def show(as_json: AsJson = False) -> None:
    """List what is there: sizes, and when it last changed; on a pipe in bytes, and in seconds since 1970.

    Examples:

      rjem cache ls

      rjem cache ls --json | jq '.entries[] | select(.bytes > 1e9)'
    """
    console, entries = Console(as_json=as_json), storage.entries()
    if as_json:
        console.document({"home": str(paths.home()), "bytes": total(entries), "entries": list(map(described, entries))})
        return
    list_entries(entries, console)
    console.log(f"{format_bytes(total(entries))} in {paths.home()}")


@cache.command("rm", short_help="Remove named entries.")
def remove(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="KIND[/NAME]...", help="As rjem cache ls names them.", autocompletion=storage.entry_names
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; a script must say so.")] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Remove what is named; a kind alone is all of its kind. What another process works with stays.

    Examples:

      rjem cache rm runs/digits

      rjem cache rm features judges --yes
    """
    console, entries = Console(as_json=as_json), storage.chosen(names)
    if not (yes or dry_run):
        list_entries(entries, console)
        if not console.ask(f"remove these {len(entries)}, {format_bytes(total(entries))}?", "--yes"):
            raise RjemError("nothing was removed")
    clear(entries, dry_run, console)


@cache.command("prune", short_help="Remove old entries that can be made again.")
def prune(
    older_than: Annotated[str, typer.Option(metavar="30d", help="Unchanged for so long: 12h, 30d.")] = "30d",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Remove what has long been unchanged and is made again when it is needed (features, parts of attacks), and the
    temporary files of killed processes. Runs, downloads, judges, priors and comparisons stay.

    Examples:

      rjem cache prune --dry-run

      rjem cache prune --older-than 7d
    """
    clear(storage.prunable(parse_duration("--older-than", older_than)), dry_run, Console(as_json=as_json))


def clear(entries: list[storage.CacheEntry], dry_run: bool, console: Console) -> None:
    """Remove them, or say that they would be. Raises RjemError if some cannot be, once the others are."""
    gone: list[storage.CacheEntry] = []
    stays: list[str] = []
    for entry in entries:
        try:
            if not dry_run:
                storage.remove(entry)
            gone.append(entry)
        except RjemError as error:
            stays.append(str(error))
    if console.as_json:
        console.document({"removed": list(map(described, gone)), "dry_run": dry_run, "stays": stays})
    elif dry_run:
        list_entries(gone, console)
    console.log(f"{'would remove' if dry_run else 'removed'} {len(gone)}, {format_bytes(total(gone))}")
    if stays:
        raise RjemError(f"{len(stays)} of {len(entries)} stay: {stays[0]}")


def list_entries(entries: list[storage.CacheEntry], console: Console) -> None:
    """On a pipe with sizes in bytes and times in seconds since 1970."""
    rows = [(entry.name, *cells(entry, console.on_terminal)) for entry in entries]
    console.table("", ("name", "size", "changed", "what it is"), rows)


def cells(entry: storage.CacheEntry, for_people: bool) -> tuple[str, str, str]:
    what = storage.KINDS[entry.kind].what
    if for_people:
        return format_bytes(entry.size), f"{format_age(time.time() - entry.changed)} ago", what
    return str(entry.size), f"{entry.changed:.0f}", what


def described(entry: storage.CacheEntry) -> dict[str, Any]:
    return {"name": entry.name, "path": str(entry.place), "bytes": entry.size, "changed": entry.changed}


def total(entries: list[storage.CacheEntry]) -> int:
    return sum(entry.size for entry in entries)
