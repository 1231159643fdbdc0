"""The measurements of a comparison, cached as JSON files; and the callbacks of its work."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rjem_cli import __version__
from rjem_cli.engine.callbacks import Log, OnProgress
from rjem_cli.engine.training.progress import Stopped
from rjem_cli.files import check_writable, json_digest, make_dir, write_atomically
from rjem_cli.paths import comparisons_dir


@dataclass(frozen=True)
class CompareCallbacks:
    """How a comparison reports. Training saves its state once `should_stop` returns True; all other work ends in
    `on_progress`. `open_stdin` returns standard input as a binary stream."""

    log: Log
    warn: Log
    show_progress: OnProgress
    should_stop: Callable[[], bool]
    open_stdin: Callable[[], BinaryIO]

    def on_progress(self, phase: str, done: int, total: int) -> None:
        """Raises Stopped if the comparison should stop."""
        if self.should_stop():
            raise Stopped
        self.show_progress(phase, done, total)


def cache_path(kind: str, decisive: list[Any]) -> Path:
    """The file of a measurement; its name is a digest of everything that the measurement depends on."""
    return comparisons_dir() / f"{kind}-{json_digest({'rjem': __version__, 'decisive': decisive})[:32]}.json"


def load_or_measure(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The cached document, or else a new one, which is cached. A damaged file does not match its digest.
    Raises RjemError before the work if the folder cannot be written."""
    cached = read_document(path)
    with contextlib.suppress(LookupError, TypeError):
        if cached["sha256"] == json_digest(cached["document"]):
            document: dict[str, Any] = cached["document"]
            return document
    check_writable(make_dir(path.parent))
    document = json.loads(json.dumps(measure(), allow_nan=False))  # as it will be read again
    write_atomically(path, json.dumps({"sha256": json_digest(document), "document": document}).encode())
    return document


def read_document(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no such file, or it holds something else."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        document = json.loads(path.read_bytes())
        return document if isinstance(document, dict) else {}
    return {}
