"""Samples as a folder: 000000.png ..., labels.csv, meta.json and grid.png."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rjem_cli.engine.data.pictures import contact_sheet, png_bytes, side_by_side, to_image
from rjem_cli.engine.sampling.generate import SampleBatch
from rjem_cli.errors import ConfigError, RjemError
from rjem_cli.paths import explained, make_dir, write_atomically

OUR_NAMES = re.compile(r"(\d{6,}\.png|labels\.csv|meta\.json|grid\.png)\Z")
LABEL_COLUMNS = ("file", "label", "class", "seed")
GRID_SAMPLES = 100
GRID_COLUMNS = 10


def prepare_folder(folder: Path, overwrite: bool) -> None:
    """Make an empty folder. Raises ConfigError rather than mix with files that are there; `overwrite` removes earlier
    samples only."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"-o {folder} is a file; give a folder")
    make_dir(folder)
    with explained("write to", folder):
        present = sorted(path.name for path in folder.iterdir())
        foreign = [name for name in present if not OUR_NAMES.match(name)]
        if foreign:
            raise ConfigError(f"-o {folder} holds other files, such as {foreign[0]}; give an empty folder")
        if present and not overwrite:
            raise ConfigError(f"-o {folder} holds samples already; add --overwrite, or give another folder")
        check_writable(folder)
        for name in present:
            (folder / name).unlink()


def write_folder(
    folder: Path, batches: Iterator[SampleBatch], class_names: Sequence[str], seed: int, meta: dict[str, Any]
) -> Iterator[int]:
    """Write each batch as it comes and yield how many samples are done. labels.csv lists exactly the images that are
    whole."""
    shown: list[tuple[Tensor, Tensor]] = []
    done = 0
    append_rows(folder, [LABEL_COLUMNS])
    for batch in batches:
        rows: list[Sequence[object]] = []
        for offset, (pixels, label) in enumerate(zip(batch.pixels, batch.labels.tolist())):
            index = batch.first + offset
            name = f"{index:06d}.png"
            write_image(folder / name, png_bytes(to_image(pixels)))
            rows.append((name, label, class_names[label], seed + index))
        append_rows(folder, rows)
        if done < GRID_SAMPLES:
            shown.append((batch.starts, batch.pixels))
        done = batch.first + len(batch.pixels)
        yield done
    starts, pixels = (torch.cat(part)[:GRID_SAMPLES] for part in zip(*shown))
    titled = [("prior", starts), (str(meta["plan"]["mode"]), pixels)]
    columns = min(GRID_COLUMNS, len(pixels))
    write_atomically(
        folder / "grid.png", png_bytes(side_by_side([(title, contact_sheet(part, columns)) for title, part in titled]))
    )
    write_atomically(folder / "meta.json", json.dumps(meta, indent=2).encode())


def append_rows(folder: Path, rows: Iterable[Sequence[object]]) -> None:
    """To labels.csv. A class may be called after a folder whose name is no UTF-8."""
    path = folder / "labels.csv"
    with explained("write", path), path.open("a", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows(rows)


def write_image(path: Path, content: bytes) -> None:
    """Whole or not at all; without the fsync of state that must survive a crash."""
    with explained("write", path):
        try:
            path.write_bytes(content)
        except OSError:
            path.unlink(missing_ok=True)
            raise


def check_writable(folder: Path) -> None:
    """Fail before the work, not after it."""
    probe = folder / ".rjem-probe"
    try:
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise RjemError(f"cannot write to {folder}: {error.strerror}; choose another place") from None
