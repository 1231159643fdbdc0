"""Values that the shell completes for options without fixed choices. No heavy imports, because the shell waits."""

import contextlib
import json
from collections.abc import Callable, Iterable
from typing import Any

import typer

from rjem_cli.config.common import DATASETS, FEATURES, METRICS, PARTS, SAMPLE_MODES, STARTS, SYNTHETIC_SETS
from rjem_cli.config.sources import preset_names
from rjem_cli.errors import RjemError
from rjem_cli.paths import find_checkpoint

LARGEST_HEADER = 2**24  # bytes


def complete_list(get_values: Callable[[typer.Context], Iterable[str]]) -> Callable[[typer.Context, str], list[str]]:
    """Complete one value, or several separated by commas."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        before, comma, _ = incomplete.rpartition(",")
        return [f"{before}{comma}{value}" for value in get_values(ctx) if value not in before.split(",")]

    return complete


def class_names(ctx: typer.Context) -> list[str]:
    """Those of the checkpoint that the command line names so far, else of the newest. Only the JSON header of the
    safetensors file is read, without checking its sha256."""
    names: list[Any] = []
    with contextlib.suppress(RjemError, OSError, ValueError, KeyError, TypeError):
        with find_checkpoint(ctx.params.get("checkpoint")).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, LARGEST_HEADER)))
        names = json.loads(header["__metadata__"]["rjem"])["description"]["info"]["class_names"]
    return [*map(str, names), "all", "none"]


COMPLETERS: dict[str, Callable[[typer.Context, str], list[str]]] = {  # by the name of the option
    "classes": complete_list(class_names),
    "target": complete_list(class_names),
    "init": complete_list(lambda ctx: STARTS),
    "preset": complete_list(lambda ctx: preset_names()),
    "metrics": complete_list(lambda ctx: ("all", *METRICS)),
    "ood": complete_list(lambda ctx: ("auto", "none", *SYNTHETIC_SETS, *DATASETS)),
    "features": complete_list(lambda ctx: FEATURES),
    "reference": complete_list(lambda ctx: [f"{name}:{part}" for name in DATASETS for part in PARTS]),
    "mode": complete_list(lambda ctx: (*SAMPLE_MODES, "none")),  # of rjem compare; rjem generate has fixed choices
    "device": complete_list(lambda ctx: ("auto", "cpu", "cuda", "mps")),
}
