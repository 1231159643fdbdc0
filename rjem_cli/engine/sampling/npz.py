"""Samples as one .npz: arr_0 (N, H, W, C) uint8 as ADM and EDM write it, labels, seeds, and meta (JSON text).

Until it is complete the rows lie in NAME.npz.part: one line of JSON, then the pixels.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rjem_cli.engine.sampling.generate import SampleBatch
from rjem_cli.engine.sampling.partial import complete, open_part, other_call, part_path
from rjem_cli.engine.sampling.request import SampleRequest
from rjem_cli.errors import ConfigError
from rjem_cli.paths import explained

LONGEST_HEADER = 2**20  # bytes


class NpzWriter:
    """Rows first, the archive at the end, so that memory does not grow and a kill loses nothing."""

    def __init__(self, path: Path, request: SampleRequest, meta: dict[str, Any], overwrite: bool):
        self.path, self.request, self.meta = path, request, meta
        self.file = open_part(path, overwrite)
        with explained("write", path):
            self.row_shape, self.begin, self.done = self._read_part()

    def _read_part(self) -> tuple[tuple[int, int, int], int, int]:
        """(H, W, C), where the rows begin, how many are whole. The shape is (0, 0, 0) until the first batch."""
        line = self.file.readline(LONGEST_HEADER)
        begun = json.dumps({"request": self.meta["request"]}).encode().removesuffix(b"}")
        if not line.endswith(b"\n") and line[: len(begun)] == begun[: len(line)]:  # new, or stopped in this line
            self.file.seek(0)
            self.file.truncate()
            return (0, 0, 0), 0, 0
        try:
            header = json.loads(line)
            height, width, channels = (int(side) for side in header["row_shape"])
            if header["request"] != self.meta["request"]:
                raise other_call(self.path)
        except (ValueError, KeyError, TypeError):
            raise other_call(self.path) from None
        row_bytes, begin = height * width * channels, len(line)
        done = (self.file.seek(0, io.SEEK_END) - begin) // row_bytes
        if done > self.request.last - self.request.first:
            raise ConfigError(f"{part_path(self.path)} has more samples than -n {self.request.count}; add --overwrite")
        self.file.truncate(begin + done * row_bytes)
        self.file.seek(0, io.SEEK_END)
        return (height, width, channels), begin, done

    def write(self, batch: SampleBatch) -> None:
        rows = batch.pixels.permute(0, 2, 3, 1).contiguous().numpy()
        with explained("write", part_path(self.path)):
            if self.begin == 0:
                self.row_shape = rows.shape[1:]
                self.begin = self.file.write(
                    json.dumps({"request": self.meta["request"], "row_shape": self.row_shape}).encode() + b"\n"
                )
            self.file.write(rows.tobytes())
            self.file.flush()
        self.done += len(rows)

    def finish(self) -> None:
        """Pack the rows, one buffer at a time."""
        temporary = self.path.with_name(self.path.name + ".new")
        rows = [self.request.row(index) for index in range(self.request.first, self.request.last)]
        arrays = {
            "labels": np.array([row[1] for row in rows], dtype=np.int64),
            "seeds": np.array([row[3] for row in rows], dtype=np.int64),
            "meta": np.array(json.dumps(self.meta, indent=2)),
        }
        with explained("write", self.path), temporary.open("wb") as packed:
            with zipfile.ZipFile(packed, "w") as archive:
                with member(archive, "arr_0") as target:
                    header = {"descr": "|u1", "fortran_order": False, "shape": (self.done, *self.row_shape)}
                    np.lib.format.write_array_header_1_0(target, header)
                    self.file.seek(self.begin)
                    shutil.copyfileobj(self.file, target, 2**20)
                for name, array in arrays.items():
                    with member(archive, name) as target:
                        np.lib.format.write_array(target, array, allow_pickle=False)
            complete(packed, temporary, self.path)
            self.file.close()
            part_path(self.path).unlink(missing_ok=True)

    def close(self) -> None:
        with explained("write", part_path(self.path)):
            self.file.close()


def member(archive: zipfile.ZipFile, name: str) -> BinaryIO:
    """A stream into the archive; with no time in it: equal samples give equal bytes."""
    return archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)  # type: ignore[return-value]
