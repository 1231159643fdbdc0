"""Samples as one .npz: arr_0 (N, H, W, C) uint8 as ADM and EDM write it, labels, seeds, and meta (JSON text).

Until it is complete the rows lie in NAME.npz.part: one line of JSON, then the pixels.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from rjem_cli.engine.sampling.generate import SampleBatch
from rjem_cli.engine.sampling.output.partial import PartFile
from rjem_cli.engine.sampling.request import SampleRequest
from rjem_cli.files import explained, replacing

LONGEST_HEADER = 2**20  # bytes


@dataclass(frozen=True)
class Rows:
    """Of a part: (H, W, C) of a row, where rows begin, how many are whole. Nothing is known before the first batch."""

    shape: tuple[int, int, int] = (0, 0, 0)
    begin: int = 0
    done: int = 0


class NpzWriter:
    """Rows first, the archive at the end, so that memory does not grow and a kill loses nothing."""

    def __init__(self, path: Path, request: SampleRequest, meta: dict[str, Any], overwrite: bool):
        self.request, self.meta = request, meta
        self.part = PartFile(path, overwrite)
        self.rows = self.part.take_over(self._read, Rows())

    @property
    def done(self) -> int:
        return self.rows.done

    def _read(self, file: BinaryIO) -> Rows:
        """What is whole, and cut what is not."""
        line = file.readline(LONGEST_HEADER)
        begun = json.dumps({"request": self.meta["request"]}).encode().removesuffix(b"}")
        if not line.endswith(b"\n") and line[: len(begun)] == begun[: len(line)]:  # new, or stopped in this line
            file.seek(0)
            file.truncate()
            return Rows()
        try:
            header = json.loads(line)
            height, width, channels = (int(side) for side in header["row_shape"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self.part.other_call() from None
        if header["request"] != self.meta["request"] or min(height, width, channels) < 1:
            raise self.part.other_call()
        done = (file.seek(0, io.SEEK_END) - len(line)) // (height * width * channels)
        if done > self.request.last - self.request.first:
            raise self.part.too_many(self.request.count)
        file.truncate(len(line) + done * height * width * channels)
        file.seek(0, io.SEEK_END)
        return Rows((height, width, channels), len(line), done)

    def write(self, batch: SampleBatch) -> None:
        pixels = batch.pixels.permute(0, 2, 3, 1).contiguous().numpy()
        with explained("write", self.part.part):
            if self.rows.begin == 0:
                header = {"request": self.meta["request"], "row_shape": pixels.shape[1:]}
                self.rows = Rows(pixels.shape[1:], self.part.file.write(json.dumps(header).encode() + b"\n"))
            self.part.file.write(pixels.tobytes())
            self.part.file.flush()
        self.rows = replace(self.rows, done=self.rows.done + len(pixels))

    def finish(self) -> None:
        """Pack the rows, one buffer at a time."""
        indices = self.request.indices()
        labels = self.request.labels(indices) if self.request.plan.conditional else torch.full_like(indices, -1)
        arrays = {
            "labels": labels.numpy(),
            "seeds": (self.request.seed + indices).numpy(),
            "meta": np.array(json.dumps(self.meta, indent=2)),
        }
        with (
            explained("write", self.part.path),
            replacing(self.part.path) as packed,
            zipfile.ZipFile(packed, "w") as archive,
        ):
            with member(archive, "arr_0") as target:
                header = {"descr": "|u1", "fortran_order": False, "shape": (self.done, *self.rows.shape)}
                np.lib.format.write_array_header_1_0(target, header)
                self.part.file.seek(self.rows.begin)
                shutil.copyfileobj(self.part.file, target, 2**20)
            for name, array in arrays.items():
                with member(archive, name) as target:
                    np.lib.format.write_array(target, array, allow_pickle=False)
        self.part.part.unlink()

    def close(self) -> None:
        self.part.close()


def member(archive: zipfile.ZipFile, name: str) -> BinaryIO:
    """A stream into the archive; with no time in it: equal samples give equal bytes."""
    return archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)  # type: ignore[return-value]
