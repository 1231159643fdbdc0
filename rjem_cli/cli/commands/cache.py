"""`rjem cache`: files that can be downloaded or computed again."""

from typing import Annotated

import typer

from rjem_cli import paths, storage
from rjem_cli.cli.console import Console
from rjem_cli.cli.formatting import format_bytes
from rjem_cli.cli.help import show_group_help
from rjem_cli.cli.options import AsJson
from rjem_cli.cli.removal import DryRemoval, Yes, remove_entries, to_dict, total_size, usage_cells
from rjem_cli.cli.stopping import parse_duration

cache = typer.Typer(
    name="cache",
    help="List and remove files that can be downloaded or computed again: data sets, weights, features, judges, "
    "priors, comparisons, attacks. Trained models are not in the cache: see rjem runs.",
    rich_markup_mode=None,
    invoke_without_command=True,
    callback=show_group_help,
)


@cache.command("dir", short_help="Print the cache folder.")
def directory() -> None:
    """Print the cache folder: RJEM_CACHE, else `cache` in RJEM_HOME, else the platform's cache folder.

    Examples:

      rjem cache dir

      du -sh "$(rjem cache dir)"/*
    """
    Console().result(str(paths.cache_dir()))


@cache.command("ls", short_help="List entries and sizes.")
def show(as_json: AsJson = False) -> None:
    """List entries with their size and last change. In a pipe: bytes, and seconds since 1970.

    Examples:

      rjem cache ls

      rjem cache ls --json | jq '.entries[] | select(.bytes > 1e9)'
    """
    console, entries = Console(as_json=as_json), storage.list_cache()
    size, folder = total_size(entries), str(paths.cache_dir())
    if as_json:
        console.document({"cache": folder, "bytes": size, "entries": list(map(to_dict, entries))})
        return
    show_entries(entries, console)
    console.log(f"{format_bytes(size)} in {folder}")


@cache.command("rm", short_help="Remove named entries.")
def remove(
    names: Annotated[
        list[str],
        typer.Argument(metavar="KIND[/NAME]...", help="Names from rjem cache ls.", autocompletion=storage.cache_names),
    ],
    yes: Yes = False,
    dry_run: DryRemoval = False,
    as_json: AsJson = False,
) -> None:
    """Remove entries. A kind alone removes all of its kind. Entries that another process uses are not removed.

    Examples:

      rjem cache rm datasets/cifar10

      rjem cache rm features judges --yes
    """
    console, entries = Console(as_json=as_json), storage.select_cache_entries(names)
    remove_entries(entries, lambda: show_entries(entries, console), console, ask=not yes, dry_run=dry_run)


@cache.command("prune", short_help="Remove old entries that are made again.")
def prune(
    older_than: Annotated[str, typer.Option(metavar="30d", help="Only entries unchanged for this time.")] = "30d",
    dry_run: DryRemoval = False,
    as_json: AsJson = False,
) -> None:
    """Remove old features and partial attacks, which are computed again when needed, and the temporary files of killed
    processes. Downloads, judges, priors and comparisons stay.

    Examples:

      rjem cache prune --dry-run

      rjem cache prune --older-than 7d
    """
    console, entries = Console(as_json=as_json), storage.prunable_entries(parse_duration("--older-than", older_than))
    remove_entries(entries, lambda: show_entries(entries, console), console, dry_run=dry_run)


def show_entries(entries: list[storage.CacheEntry], console: Console) -> None:
    rows = [(entry.name, *usage_cells(entry.usage, console), entry.kind.description) for entry in entries]
    console.table("", ("name", "size", "changed", "what it is"), rows)
