"""Training curves of runs, from their metrics.jsonl."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rjem_cli.engine.figures import OKABE_ITO, Curve, Panel, panels_of_curves
from rjem_cli.engine.training.metrics_log import events_in, numbers_in, read_lines
from rjem_cli.files import write_atomically

Lines = list[dict[str, Any]]  # of metrics.jsonl
MEASURES = (  # label, names in metrics.jsonl (the second is dashed), log scale
    ("E(x): data solid, chains dashed", ("energy_data", "energy_buffer"), False),
    ("accuracy on validation images", ("val_accuracy",), False),
    ("|dE/dx| on data", ("input_grad_norm",), True),
    ("saturation of the chains", ("saturation",), False),
)
MAX_DRAWN = 1e30  # matplotlib's own sums overflow beyond


def build_panels(runs: Sequence[tuple[Lines, str | None]], with_loss: bool = False) -> list[Panel]:
    """A panel for each of MEASURES that a run has. `runs`: lines and a colour, or None for one colour per measure."""
    panels = []
    for label, names, log in ((("cross-entropy", ("cross_entropy",), False),) if with_loss else ()) + MEASURES:
        curves = [
            Curve(*points, color or OKABE_ITO[index], dashed=index > 0)
            for lines, color in runs
            for index, name in enumerate(names)
            if (points := parse_points(lines, name, log))[0]
        ]
        if curves:
            panels.append(Panel(label, curves, log))
    return panels


def parse_points(lines: Lines, name: str, log: bool) -> tuple[list[int], list[float]]:
    """(steps, values) of the lines that have this measure. Drops values that cannot be drawn."""
    values = [(line["step"], numbers_in(line).get(name)) for line in lines if "event" not in line]
    drawn = [(step, value) for step, value in values if value is not None and abs(value) < MAX_DRAWN]
    points = [(step, value) for step, value in drawn if value > 0 or not log]
    return [step for step, _ in points], [value for _, value in points]


def write_curves(run_dir: Path) -> Path | None:
    """Write curves.png of a run, with a cross at each divergence. None if it has no metrics yet. Raises RjemError."""
    lines = read_lines(run_dir / "metrics.jsonl")
    panels = build_panels([(lines, None)], with_loss=True)
    if not panels:
        return None
    events = [(line["at"], OKABE_ITO[1]) for line in events_in(lines)]
    path = run_dir / "curves.png"
    write_atomically(path, panels_of_curves(panels, events, run_dir.name))
    return path
