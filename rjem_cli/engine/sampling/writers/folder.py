"""Samples as a folder: 000000.png ..., labels.csv, meta.json and grid.png."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rjem_cli.engine.data.csv_rows import append_rows, csv_text
from rjem_cli.engine.data.png import contact_sheet, pixels_of, png_bytes, side_by_side, write_images
from rjem_cli.engine.sampling.generate import SampleBatch
from rjem_cli.engine.sampling.request import LABEL_COLUMNS, SampleRequest
from rjem_cli.errors import ConfigError
from rjem_cli.files import claimed_folder, empty_own_folder, explained, write_atomically

OUR_NAMES = re.compile(r"\d{6,}\.png|labels\.csv|meta\.json|grid\.png")
GRID_SAMPLES = 100
GRID_COLUMNS = 10
REMEDY = "add --overwrite, or give another folder"


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
        self.labels = folder / "labels.csv"
        with ExitStack() as stack:
            earlier = stack.enter_context(claimed_folder(folder, "-o", OUR_NAMES, "meta.json"))
            self.done = self._take_over(earlier, overwrite)
            self.stack = stack.pop_all()

    def _take_over(self, earlier: dict[str, Any] | None, overwrite: bool) -> int:
        """How many samples an interrupted call of the same request left. Raises ConfigError for those of another, or
        for too many, unless they may be removed."""
        if earlier is None:
            self._describe(complete=False)  # first: it is what the other files are known by
            return cut_to_whole(self.folder, self.labels, self.request)[0]
        same = earlier.get("request") == self.meta["request"]
        done, more = cut_to_whole(self.folder, self.labels, self.request) if same else (0, False)
        if overwrite and (not same or more or earlier.get("complete")):
            empty_own_folder(self.folder, OUR_NAMES)
            return self._take_over(None, overwrite)
        if not same:
            raise ConfigError(
                f"-o {self.folder} holds samples of another call (network, seed, plan: see meta.json); {REMEDY}"
            )
        if more:
            raise ConfigError(f"-o {self.folder} holds more samples than -n {self.request.count}; {REMEDY}")
        self._describe(complete=False)
        return done

    def write(self, batch: SampleBatch) -> None:
        rows = [self.request.row(batch.first + offset) for offset in range(len(batch.pixels))]
        write_images(self.folder, [row[0] for row in rows], batch.pixels)
        append_rows(self.labels, rows)
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
        """Every file is whole after each batch; only the lock is given back."""
        self.stack.close()

    def _describe(self, complete: bool) -> None:
        write_atomically(self.folder / "meta.json", json.dumps({**self.meta, "complete": complete}, indent=2).encode())


def cut_to_whole(folder: Path, labels: Path, request: SampleRequest) -> tuple[int, bool]:
    """(how many samples are whole, whether there are more than the request's): labels.csv begins with their rows, and
    their images are there. What is no such row is cut off."""
    with explained("write", labels), labels.open("a+b") as file:
        file.seek(0)
        header = csv_text([LABEL_COLUMNS])
        if file.read(len(header)) != header:
            file.truncate(0)
            file.write(header)
            return 0, False
        whole = file.tell()
        for index in range(request.first, request.last):
            row = request.row(index)
            line = csv_text([row])
            if file.read(len(line)) != line or not (folder / row[0]).is_file():
                os.ftruncate(file.fileno(), whole)
                return index - request.first, False
            whole += len(line)
        return request.last - request.first, bool(file.read(1))
