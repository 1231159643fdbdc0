"""Tables on a terminal. Widths are counted in terminal cells: a CJK character takes two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Row = Sequence[str]
Table = tuple[str, Row, Sequence[Row]]  # title, columns, rows
BORDER = 3  # cells around each column


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
