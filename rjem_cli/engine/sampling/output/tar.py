"""Samples as a tar: for each one 000000.png and 000000.cls (its label), the form that WebDataset reads, with the
protocol in front as __meta.json__, which WebDataset passes over."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any, BinaryIO

from rjem_cli.engine.data.pictures import png_bytes, to_image
from rjem_cli.engine.sampling.generate import SampleBatch
from rjem_cli.engine.sampling.output.partial import PartFile
from rjem_cli.engine.sampling.request import SampleRequest
from rjem_cli.files import explained

META_NAME = "__meta.json__"
LONGEST_META = 2**20  # bytes; a part without a whole sample is no longer
END = bytes(2 * tarfile.BLOCKSIZE)


class TarWriter:
    """A tar on a stream, which may be a pipe."""

    def __init__(self, stream: BinaryIO, name: str, request: SampleRequest, meta: dict[str, Any], begun: bool = False):
        self.stream, self.name, self.request, self.done = stream, name, request, 0
        if not begun:
            with explained("write", name):
                stream.write(member(META_NAME, json.dumps(meta, indent=2).encode()))
                stream.flush()

    def write(self, batch: SampleBatch) -> None:
        with explained("write", self.name):
            for offset, pixels in enumerate(batch.pixels):
                name, label, _, _ = self.request.row(batch.first + offset)
                self.stream.write(member(name, png_bytes(to_image(pixels))))
                self.stream.write(member(name.replace(".png", ".cls"), str(label).encode()))
            self.stream.flush()
        self.done += len(batch.pixels)

    def finish(self) -> None:
        with explained("write", self.name):
            self.stream.write(END)
            self.stream.flush()

    def close(self) -> None:
        """A stream that breaks off has no end mark, so its reader knows."""


class TarFileWriter(TarWriter):
    """A tar file. What an interrupted call left is kept up to its last whole sample."""

    def __init__(self, path: Path, request: SampleRequest, meta: dict[str, Any], overwrite: bool):
        self.part = PartFile(path, overwrite)
        done, end = self.part.take_over(lambda file: whole_samples(file, request, meta, self.part), (0, 0))
        with explained("write", self.part.part):
            self.part.file.truncate(end)
            self.part.file.seek(end)
        super().__init__(self.part.file, str(self.part.part), request, meta, begun=end > 0)
        self.done = done

    def finish(self) -> None:
        super().finish()
        self.part.rename()

    def close(self) -> None:
        self.part.close()


def whole_samples(file: BinaryIO, request: SampleRequest, meta: dict[str, Any], part: PartFile) -> tuple[int, int]:
    """(samples, bytes) that are whole and belong to this very request. Raises ConfigError for those of another."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    members, end = 0, 0
    while len(header := file.read(tarfile.BLOCKSIZE)) == tarfile.BLOCKSIZE:
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            break
        stop = file.tell() + info.size + padding(info.size)
        if stop > size:
            break
        if members == 0 and (info.name != META_NAME or request_in(file.read(info.size)) != meta["request"]):
            raise part.other_call()
        members += 1
        if members % 2:  # the .cls behind its .png
            end = stop
        file.seek(stop)
    done = max(0, members - 1) // 2
    file.seek(0)
    if end == 0 and (size > LONGEST_META or not META_NAME.encode().startswith(file.read(len(META_NAME)))):
        raise part.other_call()
    if done > request.last - request.first:
        raise part.too_many(request.count)
    return done, end


def request_in(content: bytes) -> object:
    try:
        meta = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return meta.get("request") if isinstance(meta, dict) else None


def member(name: str, content: bytes) -> bytes:
    """Header, content and padding, with no time and no owner: equal samples give equal bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(padding(info.size))


def padding(size: int) -> int:
    return -size % tarfile.BLOCKSIZE
