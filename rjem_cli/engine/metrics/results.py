"""What every evaluation leaves: a line in the results file, and with --save a folder of eval.json and pictures."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rjem_cli import __version__
from rjem_cli.config import EvalConfig
from rjem_cli.engine.metrics.requirements import Requirements
from rjem_cli.errors import ConfigError, RjemError
from rjem_cli.files import append_line, clear_output_folder, lock_output_folder, write_atomically
from rjem_cli.paths import expand, results_file

OUR_NAMES = re.compile(r"eval\.json|nearest\.png|classes\.png|reliability\.png|energies\.png")

Pictures = dict[str, Callable[[], bytes]]  # by file name, drawn only where they are wanted


def describe_call(kind: str, scores: Mapping[str, float], requirements: Requirements, seconds: float) -> dict[str, Any]:
    """How each document begins: the scores at its top, by name."""
    return {
        "rjem": __version__,
        "kind": kind,
        **scores,
        "require": requirements.held(scores),
        "seconds": round(seconds, 1),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


@dataclass(frozen=True)
class Results:
    """Where results go: a file of lines, and maybe a folder."""

    lines: Path
    folder: Path | None

    @contextmanager
    def write(self, document: dict[str, Any], pictures: Pictures) -> Iterator[None]:
        """The body shows the results: whether or not they can be written, and after they are, should its reader leave.
        Raises RjemError where something cannot be written."""
        failed = None
        try:
            self._write(document, pictures)
        except RjemError as error:
            failed = error
        yield
        if failed is not None:
            raise failed

    def _write(self, document: dict[str, Any], pictures: Pictures) -> None:
        append_line(self.lines, json.dumps(document, allow_nan=False))
        if self.folder is None:
            return
        clear_output_folder(self.folder, OUR_NAMES)
        for name, draw in pictures.items():
            write_atomically(self.folder / name, draw())
        write_atomically(self.folder / "eval.json", json.dumps(document, indent=2, allow_nan=False).encode())


@contextmanager
def opened_results(config: EvalConfig) -> Iterator[Results]:
    """Before the work, for this process alone. Raises ConfigError for a folder that holds something else, or results
    that may not go, RjemError for a place that cannot be written."""
    lines = results_file() if config.results is None else expand(config.results)
    append_line(lines, None)
    folder = None if config.save is None else expand(config.save)
    with ExitStack() as held:
        if folder is not None:
            earlier = held.enter_context(lock_output_folder(folder, "--save", OUR_NAMES, "eval.json"))
            if earlier is not None and not config.overwrite:
                raise ConfigError(f"--save {folder} holds results already; add --overwrite, or give another folder")
        yield Results(lines, folder)
