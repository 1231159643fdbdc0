"""Removing cache entries and runs: ask, remove, report."""

import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from rjem_cli.cli.console import Console
from rjem_cli.cli.formatting import format_age, format_bytes
from rjem_cli.errors import RjemError
from rjem_cli.storage import CacheEntry, RunEntry, Usage, check_removable, remove

Entry = CacheEntry | RunEntry
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; required in scripts.")]
DryRemoval = Annotated[bool, typer.Option("--dry-run", help="Print what would be removed; then exit.")]


def remove_entries(
    entries: Sequence[Entry], show: Callable[[], None], console: Console, *, ask: bool = False, dry_run: bool = False
) -> None:
    """Remove each entry, after a question if `ask`; a dry run only shows them. Raises RjemError for a pretrained model
    (nothing is removed), if the user refuses, or if some cannot be removed, once the others are; ConfigError without a
    terminal to ask on."""
    for entry in entries:
        check_removable(entry)
    if ask and not dry_run:
        show()
        if not console.ask(f"remove these {len(entries)}, {format_bytes(total_size(entries))}?", "--yes"):
            raise RjemError("nothing was removed")
    removed: list[Entry] = []
    errors: list[str] = []
    for entry in entries:
        try:
            if not dry_run:
                remove(entry)
            removed.append(entry)
        except RjemError as error:
            errors.append(str(error))
    if console.as_json:
        console.document({"removed": list(map(to_dict, removed)), "dry_run": dry_run, "errors": errors})
    elif dry_run:
        show()
    console.log(f"{'would remove' if dry_run else 'removed'} {len(removed)}, {format_bytes(total_size(removed))}")
    if errors:
        raise RjemError(f"{len(errors)} of {len(entries)} not removed: {errors[0]}")


def to_dict(entry: Entry) -> dict[str, Any]:
    size, changed = entry.usage.size, entry.usage.changed
    return {"name": entry.name, "path": str(entry.path), "bytes": size, "changed": changed}


def usage_cells(usage: Usage, console: Console) -> tuple[str, str]:
    """Size and time of the last change: for people on a terminal; in bytes, and in seconds since 1970, in a pipe."""
    if console.on_terminal:
        return format_bytes(usage.size), f"{format_age(time.time() - usage.changed)} ago"
    return str(usage.size), f"{usage.changed:.0f}"


def total_size(entries: Sequence[Entry]) -> int:
    return sum(entry.usage.size for entry in entries)
