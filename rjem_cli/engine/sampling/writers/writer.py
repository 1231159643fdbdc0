"""Where samples are written. A writer thread encodes while the chains go on, until QUEUE batches wait."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from rjem_cli.config import STREAM, GenerateConfig
from rjem_cli.engine.sampling.generate import SampleBatch, SampleJob, until
from rjem_cli.engine.sampling.writers.folder import FolderWriter
from rjem_cli.engine.sampling.writers.npz import NpzWriter
from rjem_cli.engine.sampling.writers.tar import TarFileWriter, TarWriter
from rjem_cli.errors import ConfigError
from rjem_cli.paths import expand

QUEUE = 4  # batches that may wait for the writer: memory stays flat if it is slower than the chains
OTHER_SUFFIXES = {
    *(".zip", ".gz", ".xz", ".bz2", ".zst", ".tgz", ".7z", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".npy", ".pt"),
    *(".pth", ".safetensors", ".h5", ".parquet", ".txt", ".csv", ".json", ".yaml"),
}


class SampleWriter(Protocol):
    """One output. `done` samples are written already; `write` takes the next ones in order; `finish` completes the
    output; `close` releases it."""

    @property
    def done(self) -> int: ...

    def write(self, batch: SampleBatch) -> None: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...


class Written(NamedTuple):
    """Samples that are written, and how many of them an earlier call wrote."""

    done: int
    skipped: int


def check_output(output: str) -> None:
    """Raises ConfigError for the name of a format that is not supported."""
    if Path(output).suffix.lower() in OTHER_SUFFIXES:
        raise ConfigError(f"-o {output}: give a folder, a .npz, a .tar or - (a tar stream on stdout)")


def write_samples(
    job: SampleJob,
    config: GenerateConfig,
    stdout: Callable[[], BinaryIO],
    on_done: Callable[[int], None],
    should_stop: Callable[[], bool],
) -> Written:
    """Generate and write all samples, or up to the batch during which `should_stop` became true. `on_done` is told how
    many are written. Raises ConfigError if the output holds something else, RjemError if it cannot be written."""
    request = job.request
    with closing(open_writer(job, config, stdout)) as writer:
        skipped = writer.done
        on_done(skipped)
        batches = until(should_stop, job.generate(skip=skipped, batch_size=config.batch_size))
        for done in write_in_background(batches, writer):
            on_done(skipped + done)
        if writer.done == request.last - request.first:
            writer.finish()
        return Written(writer.done, skipped)


def open_writer(job: SampleJob, config: GenerateConfig, stdout: Callable[[], BinaryIO]) -> SampleWriter:
    """The writer for `config.output`."""
    request, meta, output = job.request, job.meta, config.output
    if output == STREAM:
        return TarWriter(stdout(), "standard output", request, meta)
    path = expand(output)
    if path.suffix.lower() == ".tar":
        return TarFileWriter(path, request, meta, config.overwrite)
    if path.suffix.lower() == ".npz":
        return NpzWriter(path, request, meta, config.overwrite)
    return FolderWriter(path, request, meta, config.overwrite, job.first_starts)


def write_in_background(batches: Iterator[SampleBatch], writer: SampleWriter) -> Iterator[int]:
    """Generate batches here and write them in another thread. Yields how many samples of this call are written, after
    each batch and at the end. An error of the writer is raised here, and nothing is written after it; before an error
    of the chains is raised, the batches before it are written."""
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

    def collect(max_waiting: int) -> int:
        """How many samples are written, once at most this many batches wait."""
        nonlocal done
        while waiting and (len(waiting) > max_waiting or waiting[0][0].done()):
            future, count = waiting.popleft()
            future.result()
            done += count
        return done

    with ThreadPoolExecutor(1, "writer") as pool:
        for batch in batches:
            waiting.append((pool.submit(write, batch), len(batch.pixels)))
            yield collect(QUEUE)
        yield collect(0)
