"""The paper's Table 1: its measured rows, and which of its orderings hold among rows that reproduce them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rjem_cli.engine.comparison.rows import COLUMNS, Ordering, Row, apart, published_rows


class Entry(NamedTuple):
    """A measured row: its name there, the model, and how it is sampled."""

    name: str
    model: str
    mode: str


TABLE1 = (
    Entry("JEM++", "jempp", "energy"),
    Entry("Single Robust Classifier", "robust", "attack"),
    Entry("Robust JEM-Energy", "rjem", "energy"),
    Entry("Robust JEM", "rjem", "combined"),
)
STANDS_FOR = {"isc_mean": ("isc_mean", "is_judge"), "fid": ("fid", "fd_judge")}  # of its columns, the first there is
HOLDS, FAILS, UNRESOLVED, UNKNOWN = "holds", "does not hold", "is not resolved", "cannot be told"


def orderings(rows: Sequence[Row]) -> Iterator[Ordering]:
    """Each ordering of two of its rows, by each of its columns, as it is printed there."""
    quoted = {row.name: row for row in published_rows()}
    measured = {row.name: row for row in rows}
    for papers, names in STANDS_FOR.items():
        column = next((name for name in names if any(name in row.scores for row in rows)), None)
        if column is None:
            continue
        sign = "<" if COLUMNS[papers].better == "lower" else ">"
        for one, other in itertools.combinations((entry.name for entry in TABLE1), 2):
            better, worse = sorted((one, other), key=lambda name: quoted[name].scores[papers], reverse=sign == ">")
            claim = f"{COLUMNS[column].label}: {better} {sign} {worse}"
            yield Ordering(claim, *verdict(measured[better], measured[worse], column, sign))


def verdict(better: Row, worse: Row, column: str, sign: str) -> tuple[str, str]:
    """(verdict, why)."""
    if column not in better.scores or column not in worse.scores:
        return UNKNOWN, "a row has no score"
    ours, theirs = better.scores[column], worse.scores[column]
    seeds = min(row.protocols.get(column, {}).get("seeds", 1) for row in (better, worse))
    spreads = [row.spreads.get(column, 0.0) for row in (better, worse)]
    values = " and ".join(
        f"{value:.3g} ± {spread:.2g}" if seeds > 1 else f"{value:.3g}" for value, spread in zip((ours, theirs), spreads)
    )
    why = f"{values}; {'one seed' if seeds == 1 else f'{seeds} seeds'}"
    if not apart(better, worse, column):
        return UNRESOLVED, why
    return HOLDS if (ours < theirs) == (sign == "<") else FAILS, why
