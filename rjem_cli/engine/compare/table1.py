"""The paper's Table 1: its measured rows, and which of its orderings hold among rows that reproduce them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rjem_cli.engine.compare.rows import (
    COLUMNS,
    Ordering,
    Row,
    apart,
    difference,
    flattened,
    groups_of,
    published_rows,
)


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
STANDS_FOR = {"isc_mean": ("isc_mean", "is_judge"), "fid": ("fid", "fd_judge", "fd_dinov2")}  # the first there is
HOLDS, FAILS, UNRESOLVED, UNKNOWN = "holds", "does not hold", "is not resolved", "cannot be told"
ONCE = "on one measurement"


def orderings(rows: Sequence[Row]) -> Iterator[Ordering]:
    """Each ordering of two of its rows, by each of its columns, as it is printed there."""
    quoted = {row.name: row for row in published_rows()}
    measured = {row.name: row for row in rows}
    for papers, names in STANDS_FOR.items():
        column = next((name for name in names if any(name in row.scores for row in rows)), papers)
        sign = "<" if COLUMNS[papers].better == "lower" else ">"
        for one, other in itertools.combinations((entry.name for entry in TABLE1), 2):
            better, worse = sorted((one, other), key=lambda name: quoted[name].scores[papers], reverse=sign == ">")
            claim = f"{COLUMNS[column].label}: {better} {sign} {worse}"
            yield Ordering(claim, *verdict(measured[better], measured[worse], column, sign))


def verdict(better: Row, worse: Row, column: str, sign: str) -> tuple[str, str]:
    """(verdict, why). Without any deviation it is a verdict on one measurement, and says so."""
    rows = (better, worse)
    lacking = [row.name for row in rows if column not in row.scores]
    if lacking:
        return UNKNOWN, f"{' and '.join(lacking)} {'have' if len(lacking) > 1 else 'has'} no such score"
    if len(groups_of(rows, column)) > 1:
        protocols = [flattened(row.protocols.get(column, {})) for row in rows]
        return UNKNOWN, difference([row.name for row in rows], protocols)
    why = f"{told(better, column)} and {told(worse, column)}; {seeds_of(rows)}"
    if not apart(better, worse, column):
        return UNRESOLVED, why
    found = HOLDS if (better.scores[column] < worse.scores[column]) == (sign == "<") else FAILS
    return (found if any(row.spreads.get(column) for row in rows) else f"{found} {ONCE}"), why


def told(row: Row, column: str) -> str:
    spread = f" ± {row.spreads[column]:.2g}" if row.spreads.get(column) else ""
    return f"{row.scores[column]:.3g}{spread}"


def seeds_of(rows: Sequence[Row]) -> str:
    counts = sorted({row.seeds for row in rows})
    return "one seed" if counts == [1] else f"{' and '.join(map(str, counts))} seeds"
