"""gpu.json and gpu.md: the machine, the command, and one table per part."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from rjem_cli.files import write_atomically, write_json
from tests.benchmarks.gpu.parts import Result, Row


def output_of(*command: str) -> str:
    """The first line that a command prints; empty if it fails or is not installed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.partition("\n")[0].strip() if done.returncode == 0 else ""


def git_commit() -> str:
    root = str(Path(__file__).parent)
    commit = output_of("git", "-C", root, "rev-parse", "HEAD")
    changed = output_of("git", "-C", root, "status", "--porcelain")
    return f"{commit}{', with changes' if changed else ''}" if commit else "unknown"


def driver_version() -> str:
    return output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "unknown"


def write_report(folder: Path, document: dict[str, Any], results: list[Result]) -> None:
    """Replace both files."""
    write_json(folder / "gpu.json", {**document, "parts": [vars(result) for result in results]})
    write_atomically(folder / "gpu.md", format_report(document, results).encode())


def format_report(document: dict[str, Any], results: list[Result]) -> str:
    lines = ["# GPU measurements", ""]
    lines += [f"- {name}: {value}" for name, value in document.items()]
    lines += ["", *table_lines([summary_row(result) for result in results])]
    for result in results:
        lines += ["", f"## {result.name}: {result.title}", "", describe(result)]
        if result.rows:
            lines += ["", *table_lines(result.rows)]
        lines += [f"\n{note}." for note in result.notes]
        lines += [f"\nNot measured ({reason}): {'; '.join(names)}." for reason, names in result.left_out.items()]
    return "\n".join(lines) + "\n"


def summary_row(result: Result) -> Row:
    return {"part": result.name, "status": result.status, "reason": result.reason, "seconds": result.seconds}


def describe(result: Result) -> str:
    reason = f": {result.reason}" if result.reason else ""
    return f"{result.status.capitalize()} in {result.seconds:.0f} s{reason}."


def table_lines(rows: list[Row]) -> list[str]:
    """A Markdown table with the columns of all rows, in the order in which they first appear; errors last."""
    names = dict.fromkeys(name for row in rows for name in row if not isinstance(row[name], dict))
    columns = sorted(names, key=lambda name: name == "error")
    lines = [columns, ["---"] * len(columns), *([format_cell(row.get(name, "-")) for name in columns] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def format_cell(value: Any) -> str:
    """Quartiles, first to third, as `median (first-third)`."""
    if isinstance(value, list):
        return "{1:.3g} ({0:.3g}-{2:.3g})".format(*value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "-"
    text = f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else str(value)
    text = f"{value:,.0f}" if isinstance(value, float) and abs(value) >= 1000 else text
    return text.replace("|", "/") or "-"
