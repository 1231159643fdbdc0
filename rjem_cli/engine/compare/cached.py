"""How the work of a comparison is followed and stopped, and where what it measured is kept."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

from rjem_cli import __version__
from rjem_cli.engine.callbacks import OnProgress
from rjem_cli.engine.sampling.request import json_digest
from rjem_cli.errors import RjemError
from rjem_cli.files import write_atomically
from rjem_cli.paths import comparisons_dir

Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Work:
    """Callbacks: `say` logs progress, `warn` logs problems, `watch` may raise to end the work, `quietly` must not
    raise, `stop` returns whether to end."""

    say: Callable[[str], None]
    warn: Callable[[str], None]
    watch: OnProgress
    quietly: OnProgress
    stop: Callable[[], bool]
    stdin: Callable[[], BinaryIO]

    def end(self, phase: str) -> NoReturn:
        """For work that came back unfinished: `watch` knows why it was stopped."""
        self.watch(phase, 0, 1)
        raise RjemError(f"{phase} was stopped; the same command goes on")


def cache_path(kind: str, decisive: list[Any]) -> Path:
    """Where a measurement is kept, under a name made of all that it depends on."""
    return comparisons_dir() / f"{kind}-{json_digest({'rjem': __version__, 'of': decisive})[:32]}.json"


def cached(path: Path, read: Callable[[dict[str, Any]], Kept], measure: Callable[[], dict[str, Any]]) -> Kept:
    """What `read` makes of an earlier call's document, or of a new one that `measure` gives, which is kept."""
    document = read_cache(path)
    if document is not None:
        with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError):  # it is not what was written
            return read(document)
    document = measure()
    write_atomically(path, json.dumps(document, allow_nan=False).encode())
    return read(document)


def read_cache(path: Path) -> dict[str, Any] | None:
    """What an earlier call measured; None where there is none, or it cannot be read."""
    try:
        found = json.loads(path.read_bytes(), parse_constant=finite, parse_float=finite)
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def finite(text: str) -> float:
    """Raises ValueError for what JSON has no word for."""
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is not finite")
    return value
