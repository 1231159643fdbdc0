"""Durations, sizes, ages, counts and series of numbers as short text; tables on a terminal.

Widths are counted in terminal cells: a CJK character takes two.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as RichTable


LEVELS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 32  # characters
Row = Sequence[str]
Table = tuple[str, Row, Sequence[Row]]  # title, columns, rows
BORDER = 3  # cells around each column


def format_duration(seconds: float) -> str:
    """The two largest units, such as `2 h 5 min`; at least one second."""
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if minutes < 1:
        return f"{max(1, round(seconds))} s"
    if hours < 1:
        return f"{int(minutes)} min {int(seconds % 60)} s"
    if days < 1:
        return f"{int(hours)} h {int(minutes % 60)} min"
    return f"{int(days)} d {int(hours % 24)} h"


def format_age(seconds: float) -> str:
    """The largest unit, such as `3 d`."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"


def format_bytes(count: int) -> str:
    """Three digits in the largest unit that leaves at least 1, such as `1.5 MB`."""
    size, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"


def sparkline(values: Sequence[float | None]) -> str:
    """At most SPARK_WIDTH values, evenly spread, as bars between the lowest and the highest. None, infinity and NaN are
    blank."""
    if not values:
        return ""
    indices = sorted({round(i * (len(values) - 1) / max(1, SPARK_WIDTH - 1)) for i in range(SPARK_WIDTH)})
    finite = [value if value is not None and math.isfinite(value) else None for value in values]
    known = [value for value in finite if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    scale = (len(LEVELS) - 1) / (high - low) if high > low else 0.0
    shown = [finite[index] for index in indices]
    return "".join(" " if value is None else LEVELS[round((value - low) * scale)] for value in shown)


def least_width(columns: Row, rows: Sequence[Row]) -> int:
    """Terminal cells that a table needs: its first column is never wrapped, the others are wrapped between words."""
    from rich.cells import cell_len

    first, *others = zip(columns, *rows)
    words = [max((cell_len(word) for cell in column for word in cell.split()), default=0) for column in others]
    return 1 + sum(BORDER + width for width in (max(map(cell_len, first)), *words))


def records(title: str, columns: Row, rows: Sequence[Row]) -> Iterator[str]:
    """A table as lines, for a narrow terminal: the first cell of each row, then `column: value` for each other cell."""
    if title:
        yield f"{title}:"
    for first, *others in rows:
        yield first
        yield from (f"  {name}: {cell}" if name else f"  {cell}" for name, cell in zip(columns[1:], others) if cell)


def rich_table(title: str, columns: Row, rows: Sequence[Row]) -> RichTable:
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(title=title or None, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, no_wrap=index == 0, overflow="fold")  # never cut a name
    for row in rows:
        table.add_row(*map(Text, row))  # Text: a name may look like markup
    return table
