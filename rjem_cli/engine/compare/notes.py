"""The text below a comparison: the paper's orderings, what was measured, and what limits the scores."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from rjem_cli.config.fields import format_epsilon
from rjem_cli.engine.compare.rows import (
    COLUMNS,
    Comparison,
    Ordering,
    Protocol,
    Row,
    describe_difference,
    differ,
    find_best,
    group_rows,
    present_columns,
    read_published_rows,
)


class Entry(NamedTuple):
    """A row of Table 1 that is reproduced: its name in the paper, the model, and the mode that samples it."""

    name: str
    model: str
    mode: str


TABLE1 = (
    Entry("JEM++", "jempp", "energy"),
    Entry("Single Robust Classifier", "robust", "attack"),
    Entry("Robust JEM-Energy", "rjem", "energy"),
    Entry("Robust JEM", "rjem", "combined"),
)
STAND_INS = {
    "isc_mean": ("isc_mean", "is_judge", "is_efficientnet"),
    "fid": ("fid", "fd_judge", "fd_efficientnet", "fd_dinov2"),
}  # the paper's columns: ours; every measured one is checked
HOLDS, FAILS, UNRESOLVED, UNKNOWN = "holds", "does not hold", "not resolved", "unknown"
ONCE = "on one measurement"
QUOTED = "[quoted] as printed in Table 1 of Korst & Asadulaev 2022 for CIFAR-10; not measured here, so not ranked"
EXACT = ("gradient_steps",)  # columns without measurement error


def check_orderings(rows: list[Row]) -> Iterator[Ordering]:
    """Each ordering of two models in each column of the paper's table, checked on rows that reproduce it."""
    published = {row.name: row for row in read_published_rows()}
    measured = {row.name: row for row in rows}
    for paper_column, stand_ins in STAND_INS.items():
        columns = [name for name in stand_ins if any(name in row.scores for row in rows)] or [paper_column]
        sign = "<" if COLUMNS[paper_column].better == "lower" else ">"
        pairs = itertools.combinations((entry.name for entry in TABLE1), 2)
        for column, pair in itertools.product(columns, pairs):
            better, worse = sorted(pair, key=lambda name: published[name].scores[paper_column], reverse=sign == ">")
            claim = f"{COLUMNS[column].label}: {better} {sign} {worse}"
            yield Ordering(claim, *check_ordering(measured[better], measured[worse], column, sign))


def check_ordering(better: Row, worse: Row, column: str, sign: str) -> tuple[str, str]:
    """(verdict, reason). The verdict says so if no deviation is known."""
    rows = [better, worse]
    missing = [row.name for row in rows if column not in row.scores]
    if missing:
        return UNKNOWN, f"{' and '.join(missing)} {'have' if len(missing) > 1 else 'has'} no such score"
    if len(group_rows(rows, column)) > 1:
        return UNKNOWN, describe_difference([row.name for row in rows], [row.protocols.get(column, {}) for row in rows])
    counts = sorted({row.seeds for row in rows})
    seeds = "one seed" if counts == [1] else f"{' and '.join(map(str, counts))} seeds"
    reason = f"{format_score(better, column)} and {format_score(worse, column)}; {seeds}"
    if not differ(better, worse, column):
        return UNRESOLVED, reason
    verdict = HOLDS if (better.scores[column] < worse.scores[column]) == (sign == "<") else FAILS
    return (verdict if any(row.spreads.get(column) for row in rows) else f"{verdict} {ONCE}"), reason


def format_score(row: Row, column: str) -> str:
    deviation = f" ± {row.spreads[column]:.2g}" if row.spreads.get(column) else ""
    return f"{row.scores[column]:.3g}{deviation}"


def all_notes(comparison: Comparison) -> list[str]:
    """The orderings with their count, and the notes on the rows; one sentence each."""
    orderings = comparison.orderings
    counts = [count_verdicts(orderings)] if orderings else []
    return [*counts, *(ordering.text for ordering in orderings), *row_notes(comparison.rows)]


def count_verdicts(orderings: Iterable[Ordering]) -> str:
    counts = Counter(ordering.verdict for ordering in orderings)
    return f"the paper's {counts.total()} orderings: {', '.join(f'{verdict} {counts[verdict]}' for verdict in counts)}"


def row_notes(rows: list[Row]) -> list[str]:
    """What was measured, why columns are not ranked or their best is uncertain, sources, and notes on single rows."""
    sources = ", ".join(f"{row.name}: {row.quoted}" for row in rows if row.quoted)
    notes = [*protocol_notes(rows), *unranked_notes(rows), *uncertain_notes(rows)]
    notes += [f"{QUOTED} ({sources})"] if sources else []
    notes += merge_notes([(row.name, note) for row in rows if row.quoted is None for note in row.notes], rows)
    return [replace_controls(note) for note in notes]


def replace_controls(text: str) -> str:
    """Without characters that break a line, move the cursor or change the direction of writing."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def merge_notes(notes: list[tuple[str, str]], rows: list[Row]) -> list[str]:
    """From (row, note), each note once, after the names of its rows unless it applies to all measured rows."""
    measured = {row.name for row in rows if row.quoted is None}
    names: dict[str, list[str]] = {}
    for name, note in dict.fromkeys(notes):
        names.setdefault(note, []).append(name)
    return [note if set(names[note]) == measured else f"{', '.join(names[note])}: {note}" for note in names]


def protocol_notes(rows: list[Row]) -> list[str]:
    """How samples were scored, and how checkpoints were tested."""
    protocols = [(row.name, origin.protocol) for row in rows for origin in row.origins]
    samples = [
        (name, describe_scoring(parts[key])) for name, parts in protocols for key in parts if key.startswith("samples")
    ]
    tests = [(name, describe_test(parts["checkpoint"])) for name, parts in protocols if "checkpoint" in parts]
    return [*merge_notes(samples, rows), *merge_notes(tests, rows)]


def describe_scoring(protocol: Protocol) -> str:
    reference = protocol["reference"]
    return (
        f"{protocol['samples']['count']} samples against {reference['count']} images of {reference['name']}, "
        f"by features of {protocol['features']['network']}"
    )


def describe_test(protocol: Protocol) -> str:
    attack = protocol["attack"]
    radii = ", ".join(format_epsilon(eps, attack["norm"]) for eps in protocol["radii"])
    return (
        f"accuracy on {protocol['images']} of {protocol['of']} images of {protocol['data']}; robust against "
        f"{attack['method']} {attack['norm']}, eps {radii}, {attack['steps']} steps, restarts {attack['restarts']}"
    )


def unranked_notes(rows: list[Row]) -> list[str]:
    """Why columns are not ranked; columns with the same reason share a note."""
    labels: dict[str, list[str]] = {}
    for column in present_columns(rows):
        groups = group_rows(rows, column)
        if len(groups) > 1 and COLUMNS[column].better:
            protocols = [rows[group[0]].protocols.get(column, {}) for group in groups]
            names = ["/".join(rows[index].name for index in group) for group in groups]
            reason = f"{describe_difference(names, protocols)}{suggest_num(protocols)}"
            labels.setdefault(reason, []).append(COLUMNS[column].label)
    return [f"{', '.join(columns)}: not ranked, {reason}" for reason, columns in labels.items()]


def suggest_num(protocols: list[Protocol]) -> str:
    """The option that makes protocols equal if only the number of samples differs; else empty."""
    counts = [count for protocol in protocols if isinstance(count := protocol.get("samples"), int)]
    without_counts = [{**protocol, "samples": None} for protocol in protocols]
    if len(counts) < len(protocols) or any(other != without_counts[0] for other in without_counts):
        return ""
    return f"; --num {min(counts)} scores the same number of each"


def uncertain_notes(rows: list[Row]) -> Iterator[str]:
    """Which columns have a best without known deviations, and which have none because all rows are equally good."""
    single, tied = [], []
    for column in present_columns(rows):
        groups, best = group_rows(rows, column), find_best(rows, column)
        if len(groups) == 1 and len(groups[0]) > 1 and COLUMNS[column].better and column not in EXACT:
            known = all(column in rows[index].spreads for index in groups[0])
            single += [COLUMNS[column].label] if best and not known else []
            tied += [COLUMNS[column].label] if known and not best else []
    if single:
        yield f"{', '.join(single)}: the best is of one measurement each, with unknown deviation"
    if tied:
        yield f"{', '.join(tied)}: no best is marked, because all rows are within their deviations"
