"""An archive in the making: NAME.part beside it, which an interrupted call leaves and the same call goes on with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from rjem_cli.errors import ConfigError
from rjem_cli.paths import check_writable, explained, make_dir


def part_path(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def open_part(path: Path, overwrite: bool) -> BinaryIO:
    """The part file of `path`, open to read and write; empty where there was none, or with `overwrite`. Raises
    ConfigError where `path` exists already."""
    if path.is_dir():
        raise ConfigError(f"-o {path} is a folder; give a file's name")
    if path.exists() and not overwrite:
        raise ConfigError(f"-o {path} exists already; add --overwrite, or give another name")
    make_dir(path.parent)
    check_writable(path.parent)
    part = part_path(path)
    with explained("write", part):
        return part.open("r+b" if part.exists() and not overwrite else "w+b")


def other_call(path: Path) -> ConfigError:
    return ConfigError(f"{part_path(path)} was left by another call; add --overwrite, or give another name")


def complete(file: BinaryIO, temporary: Path, path: Path) -> None:
    """fsync what was written and give it its final name."""
    with explained("write", path):
        file.flush()
        os.fsync(file.fileno())
        file.close()
        os.replace(temporary, path)
