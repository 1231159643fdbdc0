"""How a run went: the measures of its metrics.jsonl over its steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rjem_cli.engine.figures import Curve, panels_of_curves
from rjem_cli.engine.training.metrics_log import events_in, numbers_in, read_lines
from rjem_cli.files import write_atomically

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # told apart by all eyes
PANELS = (  # label, what of metrics.jsonl, the second dashed, log scale
    ("E(x): data solid, chains dashed", ("energy_data", "energy_buffer"), False),
    ("accuracy on validation images", ("val_accuracy",), False),
    ("|dE/dx| on data", ("input_grad_norm",), True),
    ("saturation of the chains", ("saturation",), False),
)
LARGEST_DRAWN = 1e30  # beyond it matplotlib's own sums overflow


def points_of(lines: Sequence[dict[str, Any]], measure: str, log: bool) -> tuple[list[int], list[float]]:
    """(steps, values) of the lines that have it, and can be drawn."""
    found = [(line["step"], numbers_in(line).get(measure)) for line in lines if "event" not in line]
    drawable = [(step, value) for step, value in found if value is not None and abs(value) < LARGEST_DRAWN]
    points = [(step, value) for step, value in drawable if value > 0 or not log]
    return [step for step, _ in points], [value for _, value in points]


def write_curves(run_dir: Path) -> Path | None:
    """curves.png of a run, a cross for each divergence; None where it has measured nothing yet. Raises RjemError."""
    lines = read_lines(run_dir / "metrics.jsonl")
    panels = []
    for label, measures, log in (("cross-entropy", ("cross_entropy",), False), *PANELS):
        points = [points_of(lines, measure, log) for measure in measures]
        curves = [Curve(*each, OKABE_ITO[place], bool(place)) for place, each in enumerate(points) if each[0]]
        panels += [(label, curves, log)] if curves else []
    if not panels:
        return None
    events = [(line["at"], OKABE_ITO[1]) for line in events_in(lines)]
    path = run_dir / "curves.png"
    write_atomically(path, panels_of_curves(panels, events, run_dir.name))
    return path
