"""Samples as a tar in WebDataset's layout: 000000.png and 000000.cls (its label) for each, after the protocol as
__meta.json__, which WebDataset skips."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any, BinaryIO

from rjem_cli.engine.data.png import png_bytes, to_image
from rjem_cli.engine.sampling.generate import SampleBatch
from rjem_cli.engine.sampling.request import SampleRequest
from rjem_cli.engine.sampling.writers.archive import PendingFile
from rjem_cli.files import explained, replacing

META_NAME = "__meta.json__"
END = bytes(2 * tarfile.BLOCKSIZE)


class TarWriter:
    """A tar on a stream, which may be a pipe. A stream that breaks off has no end mark, so its reader knows."""

    def __init__(self, stream: BinaryIO, name: str, request: SampleRequest, meta: dict[str, Any]):
        self.stream, self.name, self.request, self.done = stream, name, request, 0
        with explained("write", name):
            stream.write(tar_member(META_NAME, json.dumps(meta, indent=2).encode()))
            stream.flush()

    def write(self, batch: SampleBatch) -> None:
        with explained("write", self.name):
            for offset, pixels in enumerate(batch.pixels):
                name, label, _, _ = self.request.row(batch.first + offset)
                self.stream.write(tar_member(name, png_bytes(to_image(pixels))))
                self.stream.write(tar_member(name.replace(".png", ".cls"), str(label).encode()))
            self.stream.flush()
        self.done += len(batch.pixels)

    def finish(self) -> None:
        with explained("write", self.name):
            self.stream.write(END)
            self.stream.flush()

    def close(self) -> None:
        """The stream belongs to its caller."""


class TarFileWriter(TarWriter):
    """A tar file, which appears when it is complete."""

    def __init__(self, path: Path, request: SampleRequest, meta: dict[str, Any], overwrite: bool):
        self.pending = PendingFile(path, overwrite)
        super().__init__(self.pending.file, str(path), request, meta)

    def finish(self) -> None:
        super().finish()
        with explained("write", self.pending.path), replacing(self.pending.path) as file:
            self.pending.file.seek(0)
            shutil.copyfileobj(self.pending.file, file, 2**20)

    def close(self) -> None:
        self.pending.close()


def tar_member(name: str, content: bytes) -> bytes:
    """Header, content and padding, without time and owner: equal samples give equal bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-info.size % tarfile.BLOCKSIZE)
