"""Samples as a folder: 000000.png ..., labels.csv, meta.json and grid.png."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rjem_cli.engine.data.pictures import contact_sheet, pixels_of, png_bytes, side_by_side, to_image
from rjem_cli.engine.sampling.generate import SampleBatch
from rjem_cli.engine.sampling.request import SampleRequest
from rjem_cli.errors import ConfigError
from rjem_cli.paths import check_writable, explained, make_dir, write_atomically

OUR_NAMES = re.compile(r"(\d{6,}\.png|labels\.csv|meta\.json|grid\.png|\..*)\Z")
COLUMNS = ("file", "label", "class", "seed")
GRID_SAMPLES = 100
GRID_COLUMNS = 10


class FolderWriter:
    """meta.json says whether the folder is complete; labels.csv lists exactly the images that are whole."""

    def __init__(
        self,
        folder: Path,
        request: SampleRequest,
        meta: dict[str, Any],
        overwrite: bool,
        first_starts: Callable[[int], Tensor],
    ):
        self.folder, self.request, self.meta, self.first_starts = folder, request, meta, first_starts
        self.done = prepare_folder(folder, request, meta, overwrite)
        rows = [request.row(index) for index in range(request.first, request.first + self.done)]
        write_atomically(folder / "labels.csv", csv_text([COLUMNS, *rows]))
        self._describe(complete=False)

    def write(self, batch: SampleBatch) -> None:
        rows = [self.request.row(batch.first + offset) for offset in range(len(batch.pixels))]
        for (name, *_), pixels in zip(rows, batch.pixels):
            write_image(self.folder / name, png_bytes(to_image(pixels)))
        append_rows(self.folder / "labels.csv", rows)
        self.done += len(rows)

    def finish(self) -> None:
        shown = min(GRID_SAMPLES, self.done)
        names = [self.request.row(index)[0] for index in range(self.request.first, self.request.first + shown)]
        images = torch.stack([pixels_of(Image.open(self.folder / name)) for name in names])
        columns = min(GRID_COLUMNS, shown)
        titled = [("start", self.first_starts(shown)), (str(self.request.plan.mode), images)]
        sheets = [(title, contact_sheet(part, columns)) for title, part in titled]
        write_atomically(self.folder / "grid.png", png_bytes(side_by_side(sheets)))
        self._describe(complete=True)

    def close(self) -> None:
        """Every file is whole after each batch."""

    def _describe(self, complete: bool) -> None:
        write_atomically(self.folder / "meta.json", json.dumps({**self.meta, "complete": complete}, indent=2).encode())


def prepare_folder(folder: Path, request: SampleRequest, meta: dict[str, Any], overwrite: bool) -> int:
    """Make the folder, or see how many samples an interrupted call of the same request left in it. Raises ConfigError
    rather than mix with other files; `overwrite` removes earlier samples only."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"-o {folder} is a file; give a folder")
    make_dir(folder)
    with explained("write to", folder):
        check_writable(folder)
        present = sorted(path.name for path in folder.iterdir())
        foreign = [name for name in present if not OUR_NAMES.match(name)]
        if foreign:
            raise ConfigError(f"-o {folder} holds other files, such as {foreign[0]}; give an empty folder")
        present = [name for name in present if not name.startswith(".")]
        if present and not overwrite:
            return count_whole(folder, request, meta)
        for name in present:
            (folder / name).unlink()
    return 0


def count_whole(folder: Path, request: SampleRequest, meta: dict[str, Any]) -> int:
    """How many samples of this very request are whole. Raises ConfigError if the folder holds others."""
    remedy = "add --overwrite, or give another folder"
    try:
        earlier = json.loads((folder / "meta.json").read_bytes())["request"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"-o {folder} holds samples of an unknown call; {remedy}") from None
    if earlier != meta["request"]:
        raise ConfigError(f"-o {folder} holds samples of another call, see its meta.json; {remedy}")
    done = 0
    try:
        with (folder / "labels.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = csv.reader(file)
            next(rows, None)
            for index, row in zip_longest(range(request.first, request.last), rows):
                if index is None:
                    raise ConfigError(f"-o {folder} holds more samples than -n {request.count}; {remedy}")
                expected = request.row(index)
                if row != [str(value) for value in expected] or not (folder / expected[0]).is_file():
                    break
                done += 1
    except FileNotFoundError:
        return 0
    return done


def csv_text(rows: Iterable[Sequence[object]]) -> bytes:
    """A class may be called after a folder whose name is no UTF-8."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", errors="surrogateescape")


def append_rows(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """All of them or none."""
    with explained("write", path), path.open("ab") as file:
        before = file.tell()
        try:
            file.write(csv_text(rows))
            file.flush()
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(before)
            raise


def write_image(path: Path, content: bytes) -> None:
    """Whole or not at all; without the fsync of state that must survive a crash."""
    with explained("write", path):
        try:
            path.write_bytes(content)
        except OSError:
            path.unlink(missing_ok=True)
            raise
