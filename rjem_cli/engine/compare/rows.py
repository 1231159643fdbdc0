"""A row of a comparison: scores by column, each with the protocol that it is comparable under; and which is best."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rjem_cli.engine.compare.image_grid import Sheet

Protocol = dict[str, Any]


class Column(NamedTuple):
    """`better` is lower, higher or empty; a value is multiplied by `scale` and told in `form`, of Python's format. What
    is `made` of samples stands apart from what is of the classifier and its cost."""

    label: str
    better: str
    form: str
    scale: float = 1.0


COLUMNS = {
    "isc_mean": Column("IS", "higher", ".2f"),
    "fid": Column("FID", "lower", ".2f"),
    "kid_mean": Column("KID x1000", "lower", ".2f", 1000),
    "precision": Column("precision", "higher", ".3f"),
    "recall": Column("recall", "higher", ".3f"),
    "is_judge": Column("IS-judge", "higher", ".2f"),
    "fd_judge": Column("FD-judge", "lower", "#.3g"),
    "kd_judge_mean": Column("KD-judge x1000", "lower", "#.3g", 1000),
    "precision_judge": Column("precision-judge", "higher", ".3f"),
    "recall_judge": Column("recall-judge", "higher", ".3f"),
    "fd_dinov2": Column("FD-DINOv2", "lower", ".2f"),
    "kd_dinov2_mean": Column("KD-DINOv2 x1000", "lower", "#.3g", 1000),
    "precision_dinov2": Column("precision-DINOv2", "higher", ".3f"),
    "recall_dinov2": Column("recall-DINOv2", "higher", ".3f"),
    "accuracy": Column("accuracy %", "higher", ".1f", 100),
    "robust_accuracy": Column("robust %", "higher", ".1f", 100),
    "gradient_steps": Column("steps/sample", "lower", ".0f"),
    "seconds_per_1000": Column("s/1000", "lower", "#.3g"),
    "images_seen": Column("images seen", "", ".0f"),
    "divergences": Column("divergences", "", ".0f"),
    "runs_lost": Column("runs lost", "", ".0f"),
}


@dataclass(frozen=True)
class Origin:
    """What a row was measured on: the subject's name, some of its samples, some of the real images that they were
    compared with, the checkpoint, its training's settings and how it was sampled; and all that its scores depend on."""

    name: str
    samples: Sheet | None = None
    real: Sheet | None = None
    checkpoint: Path | None = None
    mode: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    protocol: Protocol = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """`scores`, and of each what two rows must share to be ranked by it, by column; `quoted` says whose word the scores
    are, for rows that nobody here measured; `notes` limit a score; `spreads` are standard deviations: over `seeds`, of
    scores that are their mean, or of one score over its splits, subsets or images. `origins` has one entry a seed."""

    name: str
    scores: dict[str, float]
    protocols: dict[str, Protocol] = field(default_factory=dict)
    quoted: str | None = None
    notes: tuple[str, ...] = ()
    spreads: dict[str, float] = field(default_factory=dict)
    seeds: int = 1
    origins: tuple[Origin, ...] = field(default=(), compare=False)


class Ordering(NamedTuple):
    """One of the paper's orderings of two models, and whether it holds here."""

    claim: str
    verdict: str
    why: str

    @property
    def text(self) -> str:
        return f"{self.verdict}: {self.claim} ({self.why})"


@dataclass(frozen=True)
class Comparison:
    """All rows, and what became of the paper's orderings where its table was reproduced."""

    rows: list[Row]
    orderings: tuple[Ordering, ...] = ()


def published_rows() -> list[Row]:
    """The paper's table, as it stands there."""
    text = resources.files("rjem_cli.engine.compare").joinpath("published.yaml").read_text(encoding="utf-8")
    return [
        Row(
            entry["name"],
            {name: float(entry[name]) for name in ("isc_mean", "fid")},
            quoted=entry["of"],
        )
        for entry in yaml.safe_load(text)
    ]


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Those in which some row has a score, in their order."""
    return [name for name in COLUMNS if any(name in row.scores for row in rows)]


def groups_of(rows: Sequence[Row], column: str) -> list[list[int]]:
    """Places of the measured rows with a score in this column, by protocol: only rows of one group can be ranked."""
    found: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        if column in row.scores and row.quoted is None:
            key = json.dumps(row.protocols.get(column), sort_keys=True)
            found.setdefault(key, []).append(place)
    return list(found.values())


def best_of(rows: Sequence[Row], column: str) -> set[int]:
    """The best places, ties among them: what is not further from the best than both spread. None where rows have
    different protocols, or all are as good."""
    groups, better = groups_of(rows, column), COLUMNS[column].better
    if len(groups) != 1 or not better:
        return set()
    best = (min if better == "lower" else max)((rows[place] for place in groups[0]), key=lambda row: row.scores[column])
    found = {place for place in groups[0] if not apart(rows[place], best, column)}
    return set() if len(found) == len(groups[0]) else found


def marks_of(rows: Sequence[Row]) -> dict[str, set[int]]:
    """The best places of each column."""
    return {column: best_of(rows, column) for column in columns_of(rows)}


def apart(one: Row, other: Row, column: str) -> bool:
    """Whether two scores differ by more than the sum of their standard deviations, as far as these are known."""
    spread = one.spreads.get(column, 0.0) + other.spreads.get(column, 0.0)
    return abs(one.scores[column] - other.scores[column]) > spread


def difference(names: list[str], protocols: list[dict[str, Any]]) -> str:
    """What the protocols differ in, and how."""
    keys = [key for key in protocols[0] if any(other.get(key) != protocols[0][key] for other in protocols)]
    keys += [key for other in protocols[1:] for key in other if key not in protocols[0] and key not in keys]
    shown = [
        f"{key} is " + ", ".join(f"{short(other.get(key))} ({name})" for name, other in zip(names, protocols))
        for key in dict.fromkeys(keys)
    ]
    return "; ".join(shown)


def short(value: Any) -> str:
    text = "not there" if value is None else str(value)
    return text[:12] if len(text) == 64 else text


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    return dict(_flat(values, prefix))


def _flat(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            yield prefix + name, value
