"""Where samples are written: a folder, a .npz, a .tar, or a tar stream on stdout.

An interrupted folder can be resumed. A .npz or .tar appears under its name only when it is complete.
"""

import abc
import json
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image

from rjem_cli import files
from rjem_cli.config.common import STREAM
from rjem_cli.config.sampling import GenerateConfig
from rjem_cli.engine.data.annotations import LABELS_NAME
from rjem_cli.engine.data.png import contact_sheet, from_image, png_bytes, side_by_side, to_image, write_images
from rjem_cli.engine.sampling.generate import SampleBatch, SampleJob
from rjem_cli.engine.sampling.request import LABEL_COLUMNS
from rjem_cli.errors import ConfigError
from rjem_cli.paths import expand

QUEUE = 4  # batches that may wait for the writer: memory stays flat if it is slower than the chains
UNSUPPORTED_SUFFIXES = (
    ".zip .gz .xz .bz2 .zst .tgz .7z .png .jpg .jpeg .gif .webp .npy .pt .pth .safetensors .h5 .parquet .txt .csv "
    ".json .yaml"
).split()
OUTPUT_FILES = re.compile(r"\d{6,}\.png|labels\.csv|meta\.json|grid\.png")
GRID_SAMPLES, GRID_COLUMNS = 100, 10
TAR_META = "__meta.json__"  # WebDataset skips names that begin with two underscores
TAR_END = bytes(2 * tarfile.BLOCKSIZE)


class SampleWriter(abc.ABC):
    """One output. `done` samples are written already; `write` takes the next ones in order; `finish` completes the
    output. The caller opens and closes what it writes to."""

    def __init__(self, job: SampleJob):
        self.job, self.request, self.done = job, job.request, 0

    @abc.abstractmethod
    def write(self, batch: SampleBatch) -> None: ...

    @abc.abstractmethod
    def finish(self) -> None: ...


class WriteResult(NamedTuple):
    """How many samples are written, and how many of them an earlier call wrote."""

    done: int
    skipped: int


def check_output(output: str) -> None:
    """Raises ConfigError for the name of an unsupported format, or a suffix without a name."""
    path = Path(output)
    if path.suffix.lower() in UNSUPPORTED_SUFFIXES or path.name.lower() in (".npz", ".tar"):
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
    with ExitStack() as stack:
        writer = open_writer(job, config, stdout, stack)
        skipped = writer.done
        on_done(skipped)
        for done in write_in_background(job.generate(skip=skipped, batch_size=config.batch_size), writer, should_stop):
            on_done(done)
        if writer.done == job.request.stop - job.request.first:
            writer.finish()
        return WriteResult(writer.done, skipped)


def open_writer(
    job: SampleJob, config: GenerateConfig, stdout: Callable[[], BinaryIO], stack: ExitStack
) -> SampleWriter:
    """The writer for `config.output`."""
    if config.output == STREAM:
        return TarWriter(job, stdout(), "standard output")
    path = expand(config.output)
    match path.suffix.lower():
        case ".npz":
            return NpzWriter(job, path, stack.enter_context(pending_file(path, config.overwrite)))
        case ".tar":
            return TarFileWriter(job, path, stack.enter_context(pending_file(path, config.overwrite)))
    earlier = stack.enter_context(files.lock_output_folder(path, "-o", OUTPUT_FILES, "meta.json"))
    return FolderWriter(job, path, earlier, config.overwrite)


def write_in_background(
    batches: Iterator[SampleBatch], writer: SampleWriter, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[int]:
    """Generate batches here and write them in another thread. Yields `writer.done` after each batch and at the end. An
    error of the writer is raised here, and nothing is written after it. Before an error of the chains is raised, the
    batches before it are written."""

    def write(batch: SampleBatch, previous: Future[None] | None) -> None:
        if previous is not None:
            previous.result()  # raises if an earlier batch was not written
        writer.write(batch)

    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1, "writer") as pool:
        for batch in batches:
            waiting.append(pool.submit(write, batch, waiting[-1] if waiting else None))
            while waiting and (len(waiting) > QUEUE or waiting[0].done()):
                waiting.popleft().result()
            yield writer.done
            if should_stop():
                break
        for future in waiting:
            future.result()
        yield writer.done


# --- a folder ---


class FolderWriter(SampleWriter):
    """000000.png ..., labels.csv, meta.json and grid.png. A row in labels.csv is written after its image, so the rows
    count the complete images. meta.json says whether the folder is complete."""

    def __init__(self, job: SampleJob, folder: Path, earlier: dict[str, Any] | None, overwrite: bool):
        """`earlier` is the meta.json of an earlier call, None for an empty folder. Raises ConfigError for samples that
        are not the request's, unless they may be overwritten."""
        super().__init__(job)
        self.folder, self.labels_path = folder, folder / LABELS_NAME
        self.done = 0 if earlier is None else self.resume_or_clear(earlier, overwrite)
        self.write_meta(complete=False)  # first, because it marks the folder as rjem's
        self.remove_incomplete()

    def resume_or_clear(self, earlier: dict[str, Any], overwrite: bool) -> int:
        """How many samples of the earlier call to keep. `overwrite` removes samples that cannot be resumed."""
        is_same = earlier.get("request") == self.job.meta["request"]
        done, has_more = self.count_rows() if is_same else (0, False)
        if overwrite and (not is_same or has_more or earlier.get("complete")):
            files.clear_output_folder(self.folder, OUTPUT_FILES)
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
        with files.explained("read", self.labels_path), self.labels_path.open("rb") as file:
            header = files.csv_text([LABEL_COLUMNS])
            if file.read(len(header)) != header:
                return 0, False
            for index in range(request.first, request.stop):
                line = files.csv_text([request.row(index)])
                if file.read(len(line)) != line or not (self.folder / request.row(index)[0]).is_file():
                    return index - request.first, False
            return request.stop - request.first, bool(file.read(1))

    def remove_incomplete(self) -> None:
        """Cut labels.csv to the rows of the first `done` samples, and remove images without a row, which an interrupted
        call wrote."""
        rows = [self.request.row(self.request.first + offset) for offset in range(self.done)]
        files.write_atomically(self.labels_path, files.csv_text([LABEL_COLUMNS, *rows]))
        names = {row[0] for row in rows}
        with files.explained("clear", self.folder):
            for path in self.folder.glob("[0-9]*.png"):
                if path.name not in names and OUTPUT_FILES.fullmatch(path.name) and not path.is_dir():
                    path.unlink()

    def write(self, batch: SampleBatch) -> None:
        rows = [self.request.row(batch.first + offset) for offset in range(len(batch.pixels))]
        write_images(self.folder, [row[0] for row in rows], batch.pixels)
        files.append_rows(self.labels_path, rows)
        self.done += len(rows)

    def finish(self) -> None:
        count = min(GRID_SAMPLES, self.done)
        names = [self.request.row(self.request.first + offset)[0] for offset in range(count)]
        samples = torch.stack([from_image(Image.open(self.folder / name)) for name in names])
        grids = [("start", self.job.first_starts(count)), (self.request.plan.mode, samples)]
        columns = min(GRID_COLUMNS, count)
        figure = side_by_side([(title, contact_sheet(pixels, columns)) for title, pixels in grids])
        files.write_atomically(self.folder / "grid.png", png_bytes(figure))
        self.write_meta(complete=True)

    def write_meta(self, complete: bool) -> None:
        files.write_json(self.folder / "meta.json", {**self.job.meta, "complete": complete})


# --- one file ---


@contextmanager
def pending_file(path: Path, overwrite: bool) -> Iterator[BinaryIO]:
    """A file without a name, which vanishes with the process, in the folder of `path`; meanwhile `path` is locked.
    Raises ConfigError if `path` exists and may not be overwritten, RjemError if nothing can be written there."""
    files.check_output_file("-o", path)
    if path.exists() and not overwrite:
        raise ConfigError(f"-o {path} already exists; add --overwrite, or choose another name")
    with files.locked(path, wait=False):
        with files.explained("write", path):
            file = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115
        try:
            yield file
        finally:
            with suppress(OSError):  # closing repeats a write that failed, of bytes that nobody needs now
                file.close()


def copy_from_start(file: BinaryIO, target: BinaryIO) -> None:
    file.seek(0)
    shutil.copyfileobj(file, target, 2**20)


class NpzWriter(SampleWriter):
    """arr_0 (N, H, W, C) uint8 as ADM and EDM write it, labels, seeds, and meta (JSON text). Rows go to the pending
    file first, so that memory does not grow."""

    def __init__(self, job: SampleJob, path: Path, pending: BinaryIO):
        super().__init__(job)
        self.path, self.pending = path, pending

    def write(self, batch: SampleBatch) -> None:
        pixels_BHWC = batch.pixels.permute(0, 2, 3, 1).contiguous().numpy()
        with files.explained("write", self.path):
            self.pending.write(pixels_BHWC.tobytes())
        self.done += len(pixels_BHWC)

    def finish(self) -> None:
        indices = self.request.indices()
        labels = self.request.labels(indices) if self.request.plan.conditional else torch.full_like(indices, -1)
        arrays = {
            "labels": labels.numpy(),
            "seeds": (self.request.seed + indices).numpy(),
            "meta": np.array(json.dumps(self.job.meta, indent=2)),
        }
        channels, height, width = self.job.setup.model.image_shape
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.done, height, width, channels)}
        with (
            files.explained("write", self.path),
            files.replace_file(self.path) as file,
            zipfile.ZipFile(file, "w") as archive,
        ):
            with open_member(archive, "arr_0") as member:
                np.lib.format.write_array_header_1_0(member, header)
                copy_from_start(self.pending, member)
            for name, array in arrays.items():
                with open_member(archive, name) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)


def open_member(archive: zipfile.ZipFile, name: str) -> BinaryIO:
    """A stream into the archive, without a time stamp: equal samples give equal bytes."""
    return archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)  # type: ignore[return-value]


class TarWriter(SampleWriter):
    """A tar in WebDataset's layout on a stream, which may be a pipe: the protocol, then 000000.png and 000000.cls (its
    label) for each sample. An incomplete stream has no end mark, so its reader notices."""

    def __init__(self, job: SampleJob, stream: BinaryIO, name: str):
        super().__init__(job)
        self.stream, self.name = stream, name
        self.append(format_member(TAR_META, json.dumps(job.meta, indent=2).encode()))

    def write(self, batch: SampleBatch) -> None:
        members = []
        for offset, pixels in enumerate(batch.pixels):
            name, label, _, _ = self.request.row(batch.first + offset)
            members.append(format_member(name, png_bytes(to_image(pixels))))
            members.append(format_member(name.replace(".png", ".cls"), str(label).encode()))
        self.append(b"".join(members))
        self.done += len(batch.pixels)

    def append(self, content: bytes) -> None:
        with files.explained("write", self.name):
            self.stream.write(content)
            self.stream.flush()

    def finish(self) -> None:
        self.append(TAR_END)


class TarFileWriter(TarWriter):
    """The same tar as a file."""

    def __init__(self, job: SampleJob, path: Path, pending: BinaryIO):
        super().__init__(job, pending, str(path))
        self.path = path

    def finish(self) -> None:
        super().finish()
        with files.explained("write", self.path), files.replace_file(self.path) as file:
            copy_from_start(self.stream, file)


def format_member(name: str, content: bytes) -> bytes:
    """Header, content and padding, without time stamp and owner: equal samples give equal bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-info.size % tarfile.BLOCKSIZE)
