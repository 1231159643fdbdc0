"""Samples as one .npz: arr_0 (N, H, W, C) uint8 as ADM and EDM write it, labels, seeds, and meta (JSON text)."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from rjem_cli.engine.sampling.generate import SampleBatch
from rjem_cli.engine.sampling.request import SampleRequest
from rjem_cli.engine.sampling.writers.archive import PendingFile
from rjem_cli.files import explained, replacing


class NpzWriter:
    """Rows go to a temporary file first, so that memory does not grow; the archive is packed at the end."""

    def __init__(self, path: Path, request: SampleRequest, meta: dict[str, Any], overwrite: bool):
        self.request, self.meta, self.done = request, meta, 0
        self.pending = PendingFile(path, overwrite)
        self.row_shape: tuple[int, ...] = ()

    def write(self, batch: SampleBatch) -> None:
        pixels = batch.pixels.permute(0, 2, 3, 1).contiguous().numpy()
        self.row_shape = pixels.shape[1:]
        with explained("write", self.pending.path):
            self.pending.file.write(pixels.tobytes())
        self.done += len(pixels)

    def finish(self) -> None:
        indices = self.request.indices()
        labels = self.request.labels(indices) if self.request.plan.conditional else torch.full_like(indices, -1)
        arrays = {
            "labels": labels.numpy(),
            "seeds": (self.request.seed + indices).numpy(),
            "meta": np.array(json.dumps(self.meta, indent=2)),
        }
        with (
            explained("write", self.pending.path),
            replacing(self.pending.path) as packed,
            zipfile.ZipFile(packed, "w") as archive,
        ):
            with open_member(archive, "arr_0") as target:
                header = {"descr": "|u1", "fortran_order": False, "shape": (self.done, *self.row_shape)}
                np.lib.format.write_array_header_1_0(target, header)
                self.pending.file.seek(0)
                shutil.copyfileobj(self.pending.file, target, 2**20)
            for name, array in arrays.items():
                with open_member(archive, name) as target:
                    np.lib.format.write_array(target, array, allow_pickle=False)

    def close(self) -> None:
        self.pending.close()


def open_member(archive: zipfile.ZipFile, name: str) -> BinaryIO:
    """A stream into the archive, without a time: equal samples give equal bytes."""
    return archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)  # type: ignore[return-value]
