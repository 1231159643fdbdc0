"""A comparison as text: tables of a terminal, TSV, Markdown, LaTeX (booktabs), CSV and JSON."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rjem_cli import __version__
from rjem_cli.engine.compare.notes import all_notes, replace_controls, row_notes
from rjem_cli.engine.compare.rows import COLUMNS, Comparison, Row, find_best, present_columns

STAR, BORDER = "*", 3  # after the best score of a column; characters around a cell of a terminal's table
MARKDOWN = {character: f"\\{character}" for character in "\\`*_|<>"}
LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "[": "{[}",
    "]": "{]}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
Table = tuple[list[str], list[list[str]]]  # titles, and the cells of each row


def format_cells(
    rows: list[Row], columns: list[str], mark: Callable[[str], str], escapes: dict[str, str] | None = None
) -> Table:
    """`mark` is applied to the best scores of a column, `escapes` to all other text."""
    table = str.maketrans(escapes or {})
    cells = [[format_name(row).translate(table)] for row in rows]
    for column in columns:
        best = find_best(rows, column)
        for index, row in enumerate(rows):
            text = format_value(row, column)
            cells[index].append(mark(text) if index in best else text)
    return ["model", *(COLUMNS[column].label.translate(table) for column in columns)], cells


def format_starred_cells(rows: list[Row], columns: list[str]) -> Table:
    """For a terminal: a star marks the best scores."""
    return format_cells(rows, columns, lambda text: f"{text} {STAR}")


def split_columns(rows: list[Row], width: int) -> list[tuple[list[Row], list[str]]]:
    """(rows, columns) of tables that fit a terminal of `width` characters, if a single column does. Rows without a
    score in any column of a table are left out of it."""
    parts: list[list[str]] = [[]]
    for column in present_columns(rows):
        if parts[-1] and table_width(rows, [*parts[-1], column]) > width:
            parts.append([])
        parts[-1].append(column)
    return [([row for row in rows if row.scores.keys() & set(columns)], columns) for columns in parts]


def table_width(rows: list[Row], columns: list[str]) -> int:
    """Characters of a terminal's table, without rows that have no score in these columns."""
    titles, cells = format_starred_cells([row for row in rows if row.scores.keys() & set(columns)], columns)
    return 1 + sum(BORDER + max(map(len, column)) for column in zip(titles, *cells))


def format_name(row: Row) -> str:
    return replace_controls(f"{row.name} [quoted]" if row.quoted else row.name)


def format_value(row: Row, column: str) -> str:
    """`41.17`, or with a known deviation `41.17 ± 0.3`; `-` without a score."""
    if column not in row.scores:
        return "-"
    value = format_number(row.scores[column] * COLUMNS[column].scale, COLUMNS[column].format)
    deviation = format_deviation(row, column)
    return f"{value} ± {deviation}" if deviation else value


def format_deviation(row: Row, column: str) -> str:
    """Empty if it is unknown or 0."""
    return format_number(row.spreads[column] * COLUMNS[column].scale, ".2g") if row.spreads.get(column) else ""


def format_number(value: float, form: str) -> str:
    """`2350` and not `2.35e+03`; `235` and not `235.`."""
    text = format(value, form).removesuffix(".")
    return f"{float(text):.0f}" if "e+" in text and abs(value) < 1e15 else text


def to_markdown(comparison: Comparison) -> str:
    columns = present_columns(comparison.rows)
    titles, cells = format_cells(comparison.rows, columns, lambda text: f"**{text}**", MARKDOWN)
    lines = [titles, ["---", *("---:" for _ in columns)], *cells]
    table = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([*table, "", *(f"- {note}" for note in all_notes(comparison))]).rstrip() + "\n"


def to_latex(comparison: Comparison) -> str:
    """A tabular for \\usepackage{booktabs}, after the notes as comments."""
    columns = present_columns(comparison.rows)
    titles, cells = format_cells(comparison.rows, columns, lambda text: f"\\textbf{{{text}}}", LATEX)
    head, *body = [" & ".join(line) + r" \\" for line in (titles, *cells)]
    notes = [f"% {note}" for note in all_notes(comparison)]
    begin = rf"\begin{{tabular}}{{l{'r' * len(columns)}}}"
    lines = [*notes, begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def to_tsv(comparison: Comparison) -> str:
    """For a pipe: no marks, and deviations in columns of their own after the scores. No notes."""
    rows, columns = comparison.rows, present_columns(comparison.rows)
    titles, cells = format_cells([replace(row, spreads={}) for row in rows], columns, str)
    spread = [column for column in columns if any(row.spreads.get(column) for row in rows)]
    lines = [[*titles, *(f"± {COLUMNS[column].label}" for column in spread)]]
    for row, texts in zip(rows, cells):
        lines.append([*texts, *(format_deviation(row, column) or "-" for column in spread)])
    return "".join("\t".join(line) + "\n" for line in lines)


def to_csv(comparison: Comparison) -> str:
    """All digits; columns by their names in JSON, then deviations as `NAME_spread`. A missing score is empty. No
    notes."""
    rows, target = comparison.rows, io.StringIO()
    columns = present_columns(rows)
    spread = [column for column in columns if any(column in row.spreads for row in rows)]
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(["name", "quoted", "seeds", *columns, *(f"{column}_spread" for column in spread)])
    for row in rows:
        scores = [row.scores.get(column, "") for column in columns]
        spreads = [row.spreads.get(column, "") for column in spread]
        writer.writerow([row.name, row.quoted or "", "" if row.quoted else row.seeds, *scores, *spreads])
    return target.getvalue()


def to_json(comparison: Comparison) -> str:
    return json.dumps(describe_comparison(comparison), indent=2, allow_nan=False) + "\n"


def describe_comparison(comparison: Comparison) -> dict[str, Any]:
    """Everything as plain data, with the protocols."""
    rows = comparison.rows
    best = {column: find_best(rows, column) for column in present_columns(rows)}
    documents = []
    for index, row in enumerate(rows):
        document = {name: getattr(row, name) for name in ("name", "quoted", "scores", "spreads", "seeds")}
        document["best"] = [column for column in best if index in best[column]]
        document |= {"protocols": row.protocols, "origins": [], "notes": list(row.notes)}
        for origin in row.origins:
            checkpoint = str(origin.checkpoint) if origin.checkpoint else None
            origin_document = {"name": origin.name, "checkpoint": checkpoint, "mode": origin.mode}
            document["origins"].append(origin_document | {"protocol": origin.protocol})
        documents.append(document)
    orderings = [ordering._asdict() for ordering in comparison.orderings]
    return {"rjem": __version__, "rows": documents, "orderings": orderings, "notes": row_notes(rows)}


WRITERS = {"table": to_tsv, "md": to_markdown, "latex": to_latex, "csv": to_csv, "json": to_json}
