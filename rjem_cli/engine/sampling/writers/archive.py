"""A file that appears under its name only when it is complete."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from rjem_cli.errors import ConfigError
from rjem_cli.files import check_writable, explained, locked, make_dir


class PendingFile:
    """`file` has no name and vanishes with the process; `path` is locked until `close`. Raises ConfigError if `path`
    exists and may not be overwritten, RjemError if nothing can be written there."""

    def __init__(self, path: Path, overwrite: bool):
        if path.is_dir():
            raise ConfigError(f"-o {path} is a folder; give a file name")
        if os.path.lexists(path) and not overwrite:
            raise ConfigError(f"-o {path} already exists; add --overwrite, or choose another name")
        make_dir(path.parent)
        check_writable(path.parent)
        self.path = path
        with ExitStack() as stack:
            stack.enter_context(locked(path, wait=False))
            with explained("write", path):
                self.file: BinaryIO = stack.enter_context(tempfile.TemporaryFile(dir=path.parent))  # type: ignore[assignment]
            self.stack = stack.pop_all()

    def close(self) -> None:
        self.stack.close()
