"""Rows of a CSV file, written all or none."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from rjem_cli.files import explained


def csv_text(rows: Iterable[Sequence[object]]) -> bytes:
    """A class may be called after a folder whose name is no UTF-8."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", errors="surrogateescape")


def append_rows(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """All of them or none."""
    with explained("write", path), path.open("ab") as file:
        before = file.tell()
        try:
            file.write(csv_text(rows))
            file.flush()
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(before)
            raise
