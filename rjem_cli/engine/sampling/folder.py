"""Samples as a folder: 000000.png ..., labels.csv, meta.json and grid.png."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rjem_cli.engine.data.csv_rows import append_rows, csv_text
from rjem_cli.engine.data.pictures import contact_sheet, pixels_of, png_bytes, side_by_side, to_image, write_image
from rjem_cli.engine.sampling.generate import SampleBatch
from rjem_cli.engine.sampling.request import SampleRequest
from rjem_cli.errors import ConfigError
from rjem_cli.paths import own_folder, write_atomically

OUR_NAMES = re.compile(r"\d{6,}\.png|labels\.csv|meta\.json|grid\.png")
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
        self.done = count_whole(folder, request, meta) if own_folder(folder, "-o", OUR_NAMES, overwrite) else 0
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
