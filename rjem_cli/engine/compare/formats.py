"""A comparison as text: cells, Markdown, LaTeX (booktabs), CSV, and plain data."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from rjem_cli import __version__
from rjem_cli.engine.compare.notes import limits_of, notes_of, printable
from rjem_cli.engine.compare.rows import (
    COLUMNS,
    Comparison,
    Origin,
    Row,
    best_of,
    columns_of,
    marks_of,
)

Mark = Callable[[str], str]
STAR, BORDER = "*", 3  # behind the best; characters around a cell of a terminal's table
MARKDOWN = "\\`*_|<>"
LATEX = {"\\": r"\textbackslash{}", "[": "{[}", "]": "{]}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    sign: f"\\{sign}" for sign in "&%$#_{}"
}


def cells(
    rows: Sequence[Row], columns: Sequence[str], mark: Mark, escape: Mark = str
) -> tuple[list[str], list[list[str]]]:
    """(titles, a list of texts a row); the best of a column goes through `mark`, all other text through `escape`."""
    best = {column: best_of(rows, column) for column in columns}
    texts = []
    for place, row in enumerate(rows):
        values = [value_text(row, column) for column in columns]
        marked = [mark(text) if place in best[column] else text for column, text in zip(columns, values)]
        texts.append([escape(name_text(row)), *marked])
    return [escape("model"), *(escape(COLUMNS[column].label) for column in columns)], texts


def plain_cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """For a pipe: no marks, and deviations in columns of their own behind the scores."""
    columns = columns_of(rows)
    titles, texts = cells([replace(row, spreads={}) for row in rows], columns, str)
    spread = [column for column in columns if any(row.spreads.get(column) for row in rows)]
    behind = [[deviation_text(row, column) or "-" for column in spread] for row in rows]
    return [*titles, *(f"± {COLUMNS[column].label}" for column in spread)], [a + b for a, b in zip(texts, behind)]


def name_text(row: Row) -> str:
    return printable(f"{row.name} [quoted]" if row.quoted else row.name)


def pieces(rows: Sequence[Row], width: int) -> list[tuple[list[Row], list[str]]]:
    """(rows, columns) of tables that are as wide as a terminal at most, where one column fits; a row without a score in
    any column of a piece is not in it."""
    found: list[list[str]] = [[]]
    for column in columns_of(rows):
        longer = [*found[-1], column]
        if found[-1] and width_of(rows_with(rows, longer), longer) > width:
            found.append([column])
        else:
            found[-1] = longer
    return [(rows_with(rows, columns), columns) for columns in found]


def rows_with(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    return [row for row in rows if row.scores.keys() & set(columns)]


def width_of(rows: Sequence[Row], columns: Sequence[str]) -> int:
    """Characters of a terminal's table."""
    titles, texts = cells(rows, columns, lambda text: f"{text} {STAR}")
    return 1 + sum(BORDER + max(map(len, column)) for column in zip(titles, *texts))


def value_text(row: Row, column: str) -> str:
    if column not in row.scores:
        return "-"
    about, deviation = COLUMNS[column], deviation_text(row, column)
    value = digits(row.scores[column] * about.scale, about.form)
    return f"{value} ± {deviation}" if deviation else value


def deviation_text(row: Row, column: str) -> str:
    """Empty where it is not known, or is nought."""
    return digits(row.spreads[column] * COLUMNS[column].scale, ".2g") if row.spreads.get(column) else ""


def digits(value: float, form: str) -> str:
    """`2350`, where .3g alone would give `2.35e+03`, and `235` for `235.`."""
    text = format(value, form).removesuffix(".")
    return f"{float(text):.0f}" if "e+" in text and abs(value) < 1e15 else text


def markdown(comparison: Comparison) -> str:

    def escape(text: str) -> str:
        return "".join(f"\\{sign}" if sign in MARKDOWN else sign for sign in text)

    rows = comparison.rows
    titles, texts = cells(rows, columns_of(rows), lambda text: f"**{text}**", escape)
    lines = [titles, ["---", *("---:" for _ in titles[1:])], *texts]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([table, "", *(f"- {note}" for note in notes_of(comparison))]).rstrip() + "\n"


def latex(comparison: Comparison) -> str:
    """A tabular for \\usepackage{booktabs}; notes are comments."""

    def escape(text: str) -> str:
        return "".join(LATEX.get(sign, sign) for sign in text)

    rows = comparison.rows
    titles, texts = cells(rows, columns_of(rows), lambda text: f"\\textbf{{{text}}}", escape)
    body = [" & ".join(line) + r" \\" for line in texts]
    return "\n".join(
        [
            *(f"% {note}" for note in notes_of(comparison)),
            rf"\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}",
            r"\toprule",
            " & ".join(titles) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def comma_separated(comparison: Comparison) -> str:
    """Full digits, the columns' own names, deviations in columns of their own, one for what is quoted; a cell without a
    score is empty. Notes have no place in it."""
    rows, target = comparison.rows, io.StringIO()
    columns = columns_of(rows)
    spread = [column for column in columns if any(column in row.spreads for row in rows)]
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(["name", "quoted", "seeds", *columns, *(f"{column}_spread" for column in spread)])
    for row in rows:
        scores = [row.scores.get(column, "") for column in columns]
        spreads = [row.spreads.get(column, "") for column in spread]
        writer.writerow([row.name, row.quoted or "", "" if row.quoted else row.seeds, *scores, *spreads])
    return target.getvalue()


def json_text(comparison: Comparison) -> str:
    return json.dumps(document(comparison), indent=2, allow_nan=False) + "\n"


def document(comparison: Comparison) -> dict[str, Any]:
    """All of it as plain data, protocols too."""
    rows = comparison.rows
    best = marks_of(rows)
    return {
        "rjem": __version__,
        "rows": [
            {
                "name": row.name,
                "quoted": row.quoted,
                "scores": row.scores,
                "spreads": row.spreads,
                "seeds": row.seeds,
                "best": [column for column in best if place in best[column]],
                "protocols": row.protocols,
                "origins": [described(origin) for origin in row.origins],
                "notes": list(row.notes),
            }
            for place, row in enumerate(rows)
        ],
        "orderings": [ordering._asdict() for ordering in comparison.orderings],
        "notes": limits_of(rows),
    }


def described(origin: Origin) -> dict[str, Any]:
    checkpoint = str(origin.checkpoint) if origin.checkpoint else None
    return {"name": origin.name, "checkpoint": checkpoint, "mode": origin.mode, "protocol": origin.protocol}


WRITTEN = {"md": markdown, "latex": latex, "csv": comma_separated, "json": json_text}
