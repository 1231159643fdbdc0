"""An archive in the making: NAME.part beside it, which an interrupted call leaves and the same call goes on with."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, TypeVar

from rjem_cli.errors import ConfigError
from rjem_cli.files import check_writable, explained, locked, make_dir

FoundT = TypeVar("FoundT")


class PartFile:
    """The part of `path`, open to read and write, and locked. Raises ConfigError where `path` exists already."""

    def __init__(self, path: Path, overwrite: bool):
        if path.is_dir():
            raise ConfigError(f"-o {path} is a folder; give a file's name")
        if os.path.lexists(path) and not overwrite:
            raise ConfigError(f"-o {path} exists already; add --overwrite, or give another name")
        make_dir(path.parent)
        check_writable(path.parent)
        self.path, self.part, self.overwrite = path, path.with_name(path.name + ".part"), overwrite
        with ExitStack() as opened:
            opened.enter_context(locked(self.part, wait=False))
            with explained("write", self.part):
                self.file: BinaryIO = self.part.open("r+b" if self.part.exists() else "w+b")
            self.held = opened.pop_all()

    def take_over(self, read: Callable[[BinaryIO], FoundT], nothing: FoundT) -> FoundT:
        """What `read` finds of the same call. Raises its ConfigError for the part of another, which `overwrite`
        empties instead."""
        with explained("read", self.part):
            try:
                return read(self.file)
            except ConfigError:
                if not self.overwrite:
                    self.close()
                    raise
                self.file.seek(0)
                self.file.truncate()
                return nothing

    def other_call(self) -> ConfigError:
        return ConfigError(f"{self.part} was left by another call; add --overwrite, or give another name")

    def too_many(self, count: int) -> ConfigError:
        return ConfigError(f"{self.part} has more samples than -n {count}; add --overwrite, or give another name")

    def rename(self) -> None:
        """fsync the part and give it its final name."""
        with explained("write", self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
            os.replace(self.part, self.path)

    def close(self) -> None:
        with self.held, explained("write", self.part):
            self.file.close()
