"""Where samples are written: a folder, a .npz, a .tar, or a tar stream on stdout.

An interrupted folder can be resumed. A .npz or .tar appears under its name only when it is complete.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
import tempfile
import threading
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rjem_cli.config import STREAM, GenerateConfig
from rjem_cli.engine.data.png import contact_sheet, from_image, png_bytes, side_by_side, to_image, write_images
from rjem_cli.engine.sampling.generate import SampleBatch, SampleJob, take_until
from rjem_cli.engine.sampling.request import LABEL_COLUMNS, SampleRequest
from rjem_cli.errors import ConfigError
from rjem_cli.files import (
    append_rows,
    check_writable,
    claimed_folder,
    csv_text,
    empty_own_folder,
    explained,
    locked,
    make_dir,
    replacing,
    write_atomically,
)
from rjem_cli.paths import expand

QUEUE = 4  # batches that may wait for the writer: memory stays flat if it is slower than the chains
UNSUPPORTED_SUFFIXES = {
    *(".zip", ".gz", ".xz", ".bz2", ".zst", ".tgz", ".7z", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".npy", ".pt"),
    *(".pth", ".safetensors", ".h5", ".parquet", ".txt", ".csv", ".json", ".yaml"),
}
FOLDER_FILES = re.compile(r"\d{6,}\.png|labels\.csv|meta\.json|grid\.png")
GRID_SAMPLES, GRID_COLUMNS = 100, 10
TAR_META = "__meta.json__"  # WebDataset skips names that begin with two underscores
TAR_END = bytes(2 * tarfile.BLOCKSIZE)


class SampleWriter(Protocol):
    """One output. `done` samples are written already; `write` takes the next ones in order; `finish` completes the
    output; `close` releases it."""

    @property
    def done(self) -> int: ...

    def write(self, batch: SampleBatch) -> None: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...


class WriteResult(NamedTuple):
    """How many samples are written, and how many of them an earlier call wrote."""

    done: int
    skipped: int


def check_output(output: str) -> None:
    """Raises ConfigError for the name of an unsupported format."""
    if Path(output).suffix.lower() in UNSUPPORTED_SUFFIXES:
        raise ConfigError(f"-o {output}: give a folder, a .npz, a .tar or - (a tar stream on stdout)")


def write_samples(
    job: SampleJob,
    config: GenerateConfig,
    stdout: Callable[[], BinaryIO],
    on_done: Callable[[int], None],
    should_stop: Callable[[], bool],
) -> WriteResult:
    """Generate and write all samples, or those up to the batch during which `should_stop` became true. `on_done` gets
    the number of written samples. Raises ConfigError if the output holds something else, RjemError if it cannot be
    written."""
    with closing(open_writer(job, config, stdout)) as writer:
        skipped = writer.done
        on_done(skipped)
        batches = take_until(should_stop, job.generate(skip=skipped, batch_size=config.batch_size))
        for done in write_in_background(batches, writer):
            on_done(skipped + done)
        if writer.done == job.request.last - job.request.first:
            writer.finish()
        return WriteResult(writer.done, skipped)


def open_writer(job: SampleJob, config: GenerateConfig, stdout: Callable[[], BinaryIO]) -> SampleWriter:
    """The writer for `config.output`."""
    if config.output == STREAM:
        return TarWriter(stdout(), "standard output", job.request, job.meta)
    path = expand(config.output)
    match path.suffix.lower():
        case ".tar":
            return TarFileWriter(path, job.request, job.meta, config.overwrite)
        case ".npz":
            return NpzWriter(path, job.request, job.meta, config.overwrite)
    return FolderWriter(path, job.request, job.meta, config.overwrite, job.first_starts)


def write_in_background(batches: Iterator[SampleBatch], writer: SampleWriter) -> Iterator[int]:
    """Generate batches here and write them in another thread. Yields how many samples are written, after each batch and
    at the end. An error of the writer is raised here, and nothing is written after it. Before an error of the chains is
    raised, the batches before it are written."""
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
        """The number of written samples, once at most `max_waiting` batches wait."""
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


# --- a folder ---


class FolderWriter:
    """000000.png ..., labels.csv, meta.json and grid.png. A row in labels.csv is written after its image, so the rows
    count the complete images. meta.json says whether the folder is complete."""

    def __init__(
        self,
        folder: Path,
        request: SampleRequest,
        meta: dict[str, Any],
        overwrite: bool,
        first_starts: Callable[[int], Tensor],
    ):
        self.folder, self.request, self.meta, self.first_starts = folder, request, meta, first_starts
        self.labels_path = folder / "labels.csv"
        with ExitStack() as stack:
            earlier = stack.enter_context(claimed_folder(folder, "-o", FOLDER_FILES, "meta.json"))
            self.done = 0 if earlier is None else self.resume_or_clear(earlier, overwrite)
            self.write_meta(complete=False)  # first, because it marks the folder as rjem's
            self.remove_images_without_row()
            self.stack = stack.pop_all()

    def resume_or_clear(self, earlier: dict[str, Any], overwrite: bool) -> int:
        """How many samples of an earlier call to keep. With `overwrite`, samples that cannot be resumed are removed.
        Raises ConfigError for samples of another call, or more than the request's."""
        is_same = earlier.get("request") == self.meta["request"]
        done, has_more = self.count_rows() if is_same else (0, False)
        if overwrite and (not is_same or has_more or earlier.get("complete")):
            empty_own_folder(self.folder, FOLDER_FILES)
            return 0
        if not is_same or has_more:
            content = f"more samples than -n {self.request.count}"
            if not is_same:
                content = "samples of another call (network, seed or plan; see its meta.json)"
            raise ConfigError(f"-o {self.folder} holds {content}; add --overwrite, or give another folder")
        return done

    def count_rows(self) -> tuple[int, bool]:
        """(rows at the beginning of labels.csv that are the request's and have an image, whether more rows follow)."""
        request = self.request
        if not self.labels_path.is_file():
            return 0, False
        with explained("read", self.labels_path), self.labels_path.open("rb") as file:
            header = csv_text([LABEL_COLUMNS])
            if file.read(len(header)) != header:
                return 0, False
            for index in range(request.first, request.last):
                line = csv_text([request.row(index)])
                if file.read(len(line)) != line or not (self.folder / request.row(index)[0]).is_file():
                    return index - request.first, False
            return request.last - request.first, bool(file.read(1))

    def remove_images_without_row(self) -> None:
        """Cut labels.csv to the rows of the first `done` samples, and remove images that an interrupted call wrote
        without a row."""
        rows = [self.request.row(self.request.first + offset) for offset in range(self.done)]
        write_atomically(self.labels_path, csv_text([LABEL_COLUMNS, *rows]))
        names = {row[0] for row in rows}
        with explained("clear", self.folder):
            for path in self.folder.glob("[0-9]*.png"):
                if path.name not in names and FOLDER_FILES.fullmatch(path.name) and not path.is_dir():
                    path.unlink()

    def write(self, batch: SampleBatch) -> None:
        rows = [self.request.row(batch.first + offset) for offset in range(len(batch.pixels))]
        write_images(self.folder, [row[0] for row in rows], batch.pixels)
        append_rows(self.labels_path, rows)
        self.done += len(rows)

    def finish(self) -> None:
        count = min(GRID_SAMPLES, self.done)
        names = [self.request.row(self.request.first + offset)[0] for offset in range(count)]
        samples = torch.stack([from_image(Image.open(self.folder / name)) for name in names])
        grids = [("start", self.first_starts(count)), (self.request.plan.mode, samples)]
        columns = min(GRID_COLUMNS, count)
        figure = side_by_side([(title, contact_sheet(pixels, columns)) for title, pixels in grids])
        write_atomically(self.folder / "grid.png", png_bytes(figure))
        self.write_meta(complete=True)

    def close(self) -> None:
        self.stack.close()

    def write_meta(self, complete: bool) -> None:
        write_atomically(self.folder / "meta.json", json.dumps({**self.meta, "complete": complete}, indent=2).encode())


# --- one file ---


class PendingFile:
    """A file without a name, which vanishes with the process. `path` is locked until `close`. Raises ConfigError if
    `path` exists and may not be overwritten, RjemError if nothing can be written there."""

    def __init__(self, path: Path, overwrite: bool):
        if path.is_dir():
            raise ConfigError(f"-o {path} is a folder; give a file name")
        if os.path.lexists(path) and not overwrite:
            raise ConfigError(f"-o {path} already exists; add --overwrite, or choose another name")
        check_writable(make_dir(path.parent))
        self.path = path
        with ExitStack() as stack:
            stack.enter_context(locked(path, wait=False))
            with explained("write", path):
                self.file: BinaryIO = stack.enter_context(tempfile.TemporaryFile(dir=path.parent))
            self.close = stack.pop_all().close

    def copy_to(self, target: BinaryIO) -> None:
        self.file.seek(0)
        shutil.copyfileobj(self.file, target, 2**20)


class NpzWriter:
    """arr_0 (N, H, W, C) uint8 as ADM and EDM write it, labels, seeds, and meta (JSON text). Rows go to a pending file
    first, so that memory does not grow."""

    def __init__(self, path: Path, request: SampleRequest, meta: dict[str, Any], overwrite: bool):
        self.request, self.meta, self.done = request, meta, 0
        self.pending = PendingFile(path, overwrite)
        self.image_shape: tuple[int, ...] = ()

    def write(self, batch: SampleBatch) -> None:
        pixels_BHWC = batch.pixels.permute(0, 2, 3, 1).contiguous().numpy()
        self.image_shape = pixels_BHWC.shape[1:]
        with explained("write", self.pending.path):
            self.pending.file.write(pixels_BHWC.tobytes())
        self.done += len(pixels_BHWC)

    def finish(self) -> None:
        indices = self.request.indices()
        labels = self.request.labels(indices) if self.request.plan.conditional else torch.full_like(indices, -1)
        arrays = {
            "labels": labels.numpy(),
            "seeds": (self.request.seed + indices).numpy(),
            "meta": np.array(json.dumps(self.meta, indent=2)),
        }
        path, header = self.pending.path, {"descr": "|u1", "fortran_order": False}
        with explained("write", path), replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
            with open_member(archive, "arr_0") as member:
                np.lib.format.write_array_header_1_0(member, header | {"shape": (self.done, *self.image_shape)})
                self.pending.copy_to(member)
            for name, array in arrays.items():
                with open_member(archive, name) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)

    def close(self) -> None:
        self.pending.close()


def open_member(archive: zipfile.ZipFile, name: str) -> BinaryIO:
    """A stream into the archive, without a time stamp: equal samples give equal bytes."""
    return archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)  # type: ignore[return-value]


class TarWriter:
    """A tar in WebDataset's layout on a stream, which may be a pipe: the protocol, then 000000.png and 000000.cls (its
    label) for each sample. An incomplete stream has no end mark, so its reader notices."""

    def __init__(self, stream: BinaryIO, name: str, request: SampleRequest, meta: dict[str, Any]):
        self.stream, self.name, self.request, self.done = stream, name, request, 0
        self.append(format_member(TAR_META, json.dumps(meta, indent=2).encode()))

    def write(self, batch: SampleBatch) -> None:
        members = []
        for offset, pixels in enumerate(batch.pixels):
            name, label, _, _ = self.request.row(batch.first + offset)
            members.append(format_member(name, png_bytes(to_image(pixels))))
            members.append(format_member(name.replace(".png", ".cls"), str(label).encode()))
        self.append(b"".join(members))
        self.done += len(batch.pixels)

    def append(self, content: bytes) -> None:
        with explained("write", self.name):
            self.stream.write(content)
            self.stream.flush()

    def finish(self) -> None:
        self.append(TAR_END)

    def close(self) -> None:
        """The stream belongs to the caller."""


class TarFileWriter(TarWriter):
    """The same tar as a file."""

    def __init__(self, path: Path, request: SampleRequest, meta: dict[str, Any], overwrite: bool):
        self.pending = PendingFile(path, overwrite)
        super().__init__(self.pending.file, str(path), request, meta)

    def finish(self) -> None:
        super().finish()
        with explained("write", self.name), replacing(self.pending.path) as file:
            self.pending.copy_to(file)

    def close(self) -> None:
        self.pending.close()


def format_member(name: str, content: bytes) -> bytes:
    """Header, content and padding, without time stamp and owner: equal samples give equal bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-info.size % tarfile.BLOCKSIZE)
