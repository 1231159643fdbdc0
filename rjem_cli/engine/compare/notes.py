"""What stands below a comparison: what became of the paper's orderings, what was measured, and what limits it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rjem_cli.config.fields import format_epsilon
from rjem_cli.engine.compare.rows import (
    COLUMNS,
    Comparison,
    Ordering,
    Protocol,
    Row,
    best_of,
    columns_of,
    difference,
    flattened,
    groups_of,
)

QUOTED = "[quoted] as Table 1 of Korst & Asadulaev 2022 has it for CIFAR-10; not measured here, so not ranked"
EXACT = ("gradient_steps",)  # no other measurement could give another number


def notes_of(comparison: Comparison) -> list[str]:
    """All of them, a sentence each."""
    orderings = comparison.orderings
    tally = [tally_of(orderings)] if orderings else []
    return [*tally, *(ordering.text for ordering in orderings), *limits_of(comparison.rows)]


def tally_of(orderings: Sequence[Ordering]) -> str:
    counts = Counter(ordering.verdict for ordering in orderings)
    return (
        f"of the paper's {len(orderings)} orderings: {', '.join(f'{verdict} {counts[verdict]}' for verdict in counts)}"
    )


def limits_of(rows: Sequence[Row]) -> list[str]:
    """What was measured, why columns are not ranked or their best is doubtful, whose word quoted rows are, and what
    limits the others, each thing once."""
    whose = ", ".join(f"{row.name}: {row.quoted}" for row in rows if row.quoted)
    quoted = [f"{QUOTED} ({whose})"] if whose else []
    own = shared([(row.name, note) for row in rows if row.quoted is None for note in row.notes], rows)
    found = [*measured(rows), *reasons(rows), *doubts(rows), *quoted, *own]
    return [printable(note) for note in found]


def printable(text: str) -> str:
    """Without characters that break a line, move a cursor or turn the direction of writing."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def shared(named: Sequence[tuple[str, str]], rows: Sequence[Row]) -> list[str]:
    """From (row, what is said of it), each thing once, behind the names of its rows unless it is said of all that were
    measured."""
    everybody = {row.name for row in rows if row.quoted is None}
    found: dict[str, list[str]] = {}
    for name, text in dict.fromkeys(named):
        found.setdefault(text, []).append(name)
    return [text if set(names) == everybody else f"{', '.join(names)}: {text}" for text, names in found.items()]


def measured(rows: Sequence[Row]) -> list[str]:
    """On what, and against what."""
    parts = [(row.name, origin.protocol) for row in rows for origin in row.origins]
    samples = [(name, told_samples(part["samples"])) for name, part in parts if "samples" in part]
    tests = [(name, told_tests(part["checkpoint"])) for name, part in parts if "checkpoint" in part]
    return [*shared(samples, rows), *shared(tests, rows)]


def told_samples(protocol: Protocol) -> str:
    reference = protocol["reference"]
    return (
        f"{protocol['samples']['count']} samples against {reference['count']} images of {reference['name']}, "
        f"by features of {protocol['features']['network']}"
    )


def told_tests(protocol: Protocol) -> str:
    attack, radii = protocol["attack"], protocol["radii"]
    radius = ", ".join(format_epsilon(eps, attack["norm"]) for eps in radii)
    return (
        f"accuracy on {protocol['images']} of {protocol['of']} images of {protocol['data']}; robust against "
        f"{attack['method']} {attack['norm']}, eps {radius}, {attack['steps']} steps, restarts {attack['restarts']}"
    )


def reasons(rows: Sequence[Row]) -> list[str]:
    """Why columns are not ranked, a sentence each; columns with the same reason share one."""
    found: dict[str, list[str]] = {}
    for column in columns_of(rows):
        groups = groups_of(rows, column)
        if len(groups) > 1 and COLUMNS[column].better:
            protocols = [rows[group[0]].protocols.get(column, {}) for group in groups]
            names = ["/".join(rows[place].name for place in group) for group in groups]
            reason = difference(names, [flattened(protocol) for protocol in protocols])
            found.setdefault(f"{reason}{remedy(protocols)}", []).append(COLUMNS[column].label)
    return [f"{', '.join(labels)}: not ranked, {reason}" for reason, labels in found.items()]


def remedy(protocols: Sequence[Protocol]) -> str:
    """Where only the number of samples differs."""
    counts = [count for protocol in protocols if isinstance(count := protocol.get("samples"), int)]
    rest = [{**protocol, "samples": None} for protocol in protocols]
    if len(counts) < len(protocols) or any(other != rest[0] for other in rest):
        return ""
    return f"; --num {min(counts)} scores as many of each"


def doubts(rows: Sequence[Row]) -> Iterator[str]:
    """Which columns have a best by one measurement only, and which have none, as all are as good."""
    alone, tied = [], []
    for column in columns_of(rows):
        groups, best = groups_of(rows, column), best_of(rows, column)
        if len(groups) != 1 or len(groups[0]) < 2 or column in EXACT or not COLUMNS[column].better:
            continue
        known = all(column in rows[place].spreads for place in groups[0])
        if best and not known:
            alone.append(COLUMNS[column].label)
        elif not best and known:
            tied.append(COLUMNS[column].label)
    if alone:
        yield f"{', '.join(alone)}: the best of one measurement each, whose deviation is not known"
    if tied:
        yield f"{', '.join(tied)}: no best is marked, for all lie within their deviations"
