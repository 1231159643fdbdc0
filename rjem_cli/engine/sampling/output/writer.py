"""Where samples go, and how: beside the chains, on a thread of its own, so that no chain waits for a PNG encoder until
QUEUE batches do.

Every writer knows how many samples an interrupted call left whole, and goes on behind them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from torch import Tensor

from rjem_cli.config import STREAM
from rjem_cli.engine.ranks import ALONE, Ranks
from rjem_cli.engine.sampling.generate import SampleBatch
from rjem_cli.engine.sampling.output.folder import FolderWriter
from rjem_cli.engine.sampling.output.npz import NpzWriter
from rjem_cli.engine.sampling.output.tar import TarFileWriter, TarWriter
from rjem_cli.engine.sampling.request import SampleRequest
from rjem_cli.errors import ConfigError
from rjem_cli.paths import expand

QUEUE = 4  # batches that may wait for the writer: memory stays flat where it is the slower side
OTHER_SUFFIXES = {
    *(".zip", ".gz", ".xz", ".bz2", ".zst", ".tgz", ".7z", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".npy", ".pt"),
    *(".pth", ".safetensors", ".h5", ".parquet", ".txt", ".csv", ".json", ".yaml"),
}


class SampleWriter(Protocol):
    """One output. `done` samples are whole already; `write` takes the next ones in order; `finish` makes the output
    complete; `close` lets go of it as it is, and what is whole stays valid."""

    @property
    def done(self) -> int: ...

    def write(self, batch: SampleBatch) -> None: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...


@dataclass
class CountingWriter:
    """Of samples that another process writes."""

    done: int

    def write(self, batch: SampleBatch) -> None:
        self.done += len(batch.pixels)

    def finish(self) -> None:
        """It is the other's to do."""

    def close(self) -> None:
        """Nothing is held."""


def check_output(output: str) -> None:
    """Raises ConfigError for a name that means a form which is not written."""
    if Path(output).suffix.lower() in OTHER_SUFFIXES:
        raise ConfigError(f"-o {output}: give a folder, a .npz, a .tar or - (a tar stream on stdout)")


def open_writer(
    output: str,
    request: SampleRequest,
    meta: dict[str, Any],
    overwrite: bool,
    stdout: Callable[[], BinaryIO],
    first_starts: Callable[[int], Tensor],
) -> SampleWriter:
    """The writer that `output` names. `first_starts(n)` gives the pixels that the first n samples began as, for the
    picture in a folder. Raises ConfigError where something else is there, RjemError where nothing can be written."""
    if output == STREAM:
        return TarWriter(stdout(), "standard output", request, meta)
    path = expand(output)
    if path.suffix.lower() == ".tar":
        return TarFileWriter(path, request, meta, overwrite)
    if path.suffix.lower() == ".npz":
        return NpzWriter(path, request, meta, overwrite)
    return FolderWriter(path, request, meta, overwrite, first_starts)


def write_beside(batches: Iterator[SampleBatch], writer: SampleWriter, ranks: Ranks = ALONE) -> Iterator[int]:
    """Draw batches here, write them on another thread; yields how many samples of this call are whole, after each
    batch and at the end. An error of the writer is raised here, on every rank, and nothing is written behind it; before
    an error of the chains, what they made is."""
    waiting: deque[tuple[Future[None], int]] = deque()
    done, failed = 0, threading.Event()

    def write(batch: SampleBatch) -> None:
        if failed.is_set():
            return
        try:
            writer.write(batch)
        except BaseException:
            failed.set()
            raise

    def settle(at_most: int) -> int:
        """How many samples are whole, once no more batches than this wait."""
        nonlocal done
        while waiting and (len(waiting) > at_most or waiting[0][0].done()):
            future, count = waiting.popleft()
            future.result()
            done += count
        return done

    with ThreadPoolExecutor(1, "writer") as pool:
        for batch in batches:
            waiting.append((pool.submit(write, batch), len(batch.pixels)))
            yield ranks.jointly(lambda: settle(at_most=QUEUE))
        yield ranks.jointly(lambda: settle(at_most=0))
