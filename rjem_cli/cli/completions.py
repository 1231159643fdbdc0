"""What TAB offers for values that are no fixed choice. Nothing heavy is imported: a shell waits for it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import typer

from rjem_cli.config import DATASETS, FEATURES, METRICS, SAMPLE_MODES, STARTS, SYNTHETIC_SETS
from rjem_cli.config.sources import preset_names
from rjem_cli.errors import RjemError
from rjem_cli.paths import find_checkpoint

PARTS = ("train", "test", "all")
LARGEST_HEADER = 2**24  # bytes


def listed(known: Callable[[typer.Context], Iterable[str]]) -> Callable[[typer.Context, str], list[str]]:
    """For one of these names, or several with commas."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        before, comma, _ = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in known(ctx) if name not in before.split(",")]

    return complete


def class_names(ctx: typer.Context) -> list[str]:
    """Of the checkpoint that the line names so far, else of the newest."""
    with contextlib.suppress(RjemError, OSError, ValueError, KeyError, TypeError):
        path = find_checkpoint(ctx.params.get("checkpoint"))
        names = [str(name) for name in description_of(path)["info"]["class_names"]]
        return [*names, "all", "none"]
    return ["all", "none"]


def description_of(checkpoint: Path) -> dict[str, dict[str, list[str]]]:
    """What a safetensors file says of itself: 8 bytes with the length of a JSON header, and that. Without the check of
    its sha256. Raises OSError, ValueError, KeyError or TypeError for any other file."""
    with checkpoint.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, LARGEST_HEADER)))
    description: dict[str, dict[str, list[str]]] = json.loads(header["__metadata__"]["rjem"])["description"]
    return description


VALUES: dict[str, Callable[[typer.Context, str], list[str]]] = {  # by the name of the knob
    "classes": listed(class_names),
    "target": listed(class_names),
    "init": listed(lambda ctx: STARTS),
    "preset": listed(lambda ctx: preset_names()),
    "metrics": listed(lambda ctx: ("all", *METRICS)),
    "ood": listed(lambda ctx: ("auto", "none", *SYNTHETIC_SETS, *DATASETS)),
    "features": listed(lambda ctx: FEATURES),
    "reference": listed(lambda ctx: [f"{name}:{part}" for name in DATASETS for part in PARTS]),
    "mode": listed(lambda ctx: (*SAMPLE_MODES, "none")),  # of compare; generate has a choice
    "device": listed(lambda ctx: ("auto", "cpu", "cuda", "mps")),
}
