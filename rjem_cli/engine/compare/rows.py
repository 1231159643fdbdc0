"""Rows of a comparison, and which of them is best: only scores of the same protocol are ranked.

A published row and a measured row are the same `Row`; `quoted` alone sets them apart.
"""

import json
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from torch import Tensor

Protocol = dict[str, Any]  # everything that a score depends on


class Column(NamedTuple):
    """`better` is "lower", "higher" or "" (not ranked). A cell shows value * scale in `format`."""

    label: str
    better: str
    format: str
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
    "is_efficientnet": Column("IS-efficientnet", "higher", ".2f"),
    "fd_efficientnet": Column("FD-efficientnet", "lower", "#.3g"),
    "kd_efficientnet_mean": Column("KD-efficientnet x1000", "lower", "#.3g", 1000),
    "precision_efficientnet": Column("precision-efficientnet", "higher", ".3f"),
    "recall_efficientnet": Column("recall-efficientnet", "higher", ".3f"),
    "fd_dinov2": Column("FD-DINOv2", "lower", ".2f"),
    "kd_dinov2_mean": Column("KD-DINOv2 x1000", "lower", "#.3g", 1000),
    "precision_dinov2": Column("precision-DINOv2", "higher", ".3f"),
    "recall_dinov2": Column("recall-DINOv2", "higher", ".3f"),
    "is_custom": Column("IS-custom", "higher", ".2f"),
    "fd_custom": Column("FD-custom", "lower", ".2f"),
    "kd_custom_mean": Column("KD-custom x1000", "lower", ".2f", 1000),
    "precision_custom": Column("precision-custom", "higher", ".3f"),
    "recall_custom": Column("recall-custom", "higher", ".3f"),
    "accuracy": Column("accuracy %", "higher", ".1f", 100),
    "robust_accuracy": Column("robust %", "higher", ".1f", 100),
    "standard_accuracy": Column("AutoAttack %", "higher", ".1f", 100),
    "gradient_steps": Column("steps/sample", "lower", ".0f"),
    "seconds_per_1000": Column("s/1000", "lower", "#.3g"),
    "images_seen": Column("images seen", "", ".0f"),
    "divergences": Column("divergences", "", ".0f"),
    "runs_lost": Column("runs lost", "", ".0f"),
}


@dataclass(frozen=True)
class ImageGrid:
    """A few of the `total` images of a set: pixels uint8 (N, C, H, W), row by row. With `classes`, each column holds
    images of one class."""

    name: str
    pixels: Tensor
    columns: int
    total: int
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Origin:
    """What one seed of a row was measured on: a checkpoint with its training settings and sampling mode, or samples.
    `real`: images of the reference that the samples were compared with."""

    name: str
    samples: ImageGrid | None = None
    real: ImageGrid | None = None
    checkpoint: Path | None = None
    mode: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    protocol: Protocol = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """Scores by column. `protocols`: what two rows must share to be ranked, by column. `spreads`: standard deviations
    by column, over `seeds` if there are several, else over the splits, subsets or images of one score. `quoted`: the
    publication, for scores that were not measured here. `notes` limit the scores. `origins` has one entry per seed."""

    name: str
    scores: dict[str, float]
    protocols: dict[str, Protocol] = field(default_factory=dict)
    quoted: str | None = None
    notes: tuple[str, ...] = ()
    spreads: dict[str, float] = field(default_factory=dict)
    seeds: int = 1
    origins: tuple[Origin, ...] = field(default=(), compare=False)

    @property
    def sampled_origin(self) -> Origin | None:
        """The first seed with samples, which stands for all of them in figures."""
        return next((origin for origin in self.origins if origin.samples), None)


class Ordering(NamedTuple):
    """A claim of the paper, that one model is better than another in one column, and whether it holds here."""

    claim: str
    verdict: str
    reason: str

    @property
    def text(self) -> str:
        return f"{self.verdict}: {self.claim} ({self.reason})"


@dataclass(frozen=True)
class Comparison:
    """All rows; and the paper's orderings, if its table was reproduced."""

    rows: list[Row]
    orderings: tuple[Ordering, ...] = ()


def read_published_rows() -> list[Row]:
    """The rows of the paper's Table 1, as printed."""
    text = resources.files("rjem_cli.engine.compare").joinpath("published.yaml").read_text(encoding="utf-8")
    return [Row(entry["name"], entry["scores"], quoted=entry["source"]) for entry in yaml.safe_load(text)]


def present_columns(rows: list[Row]) -> list[str]:
    """The columns in which at least one row has a score."""
    return [column for column in COLUMNS if any(column in row.scores for row in rows)]


def group_rows(rows: list[Row], column: str) -> list[list[int]]:
    """Indices of the measured rows with a score in this column, grouped by protocol."""
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if column in row.scores and row.quoted is None:
            groups.setdefault(json.dumps(row.protocols.get(column), sort_keys=True), []).append(index)
    return list(groups.values())


def find_best(rows: list[Row], column: str) -> set[int]:
    """Indices of the best row, and of those that do not differ from it by more than their deviations. Empty if the rows
    have different protocols, or none is worse than the best."""
    groups, better = group_rows(rows, column), COLUMNS[column].better
    if len(groups) != 1 or not better:
        return set()
    best = (min if better == "lower" else max)((rows[index] for index in groups[0]), key=lambda row: row.scores[column])
    indices = {index for index in groups[0] if not differ(rows[index], best, column)}
    return set() if len(indices) == len(groups[0]) else indices


def differ(one: Row, other: Row, column: str) -> bool:
    """Whether two scores differ by more than the sum of their standard deviations. An unknown deviation counts as 0."""
    spread = one.spreads.get(column, 0.0) + other.spreads.get(column, 0.0)
    return abs(one.scores[column] - other.scores[column]) > spread


def describe_difference(names: list[str], protocols: list[Protocol]) -> str:
    """`samples is 1000 (a), 500 (b)`: the keys in which protocols differ, each with its values."""
    flat = [flatten(protocol) for protocol in protocols]
    keys = dict.fromkeys(key for protocol in flat for key in protocol)
    differing = [key for key in keys if any(other.get(key) != flat[0].get(key) for other in flat)]
    return "; ".join(
        f"{key} is " + ", ".join(f"{shorten(other.get(key))} ({name})" for name, other in zip(names, flat))
        for key in differing
    )


def shorten(value: Any) -> str:
    """The value as text; only the start of a sha256."""
    text = "not there" if value is None else str(value)
    return text[:12] if len(text) == 64 else text


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, keys joined by a space: {"a": {"b": 1}} -> {"a b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name} ") if isinstance(value, dict) else {prefix + name: value}
    return flat
