"""Arrays from untrusted .npz files."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rjem_cli.errors import DataError, summarize


@contextlib.contextmanager
def open_npz(path: Path) -> Iterator[Any]:
    """An .npz whose arrays are read when they are accessed. Pickled objects are refused. Raises DataError."""
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("it is an .npy, one array without a name")
        with archive:
            yield archive
    except Exception as error:  # numpy parses headers as Python, and raises many types
        reason = "" if "pickle" in str(error).lower() else f" ({summarize(error)})"
        raise DataError(f"{path} is not a valid .npz, or contains pickled objects{reason}; export it again") from None


def load_arrays(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The arrays of these names that an .npz contains. Raises DataError."""
    with open_npz(path) as archive:
        return {name: archive[name] for name in names if name in archive}


def read_array_names(path: Path) -> set[str]:
    """The names in an .npz; the arrays are not read. Raises DataError."""
    with open_npz(path) as archive:
        return set(archive.files)
