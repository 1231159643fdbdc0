"""metrics.jsonl: one line of means since the previous line, and one line for each divergence; and its curves."""

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rjem_cli.engine.figures import OKABE_ITO, Curve, Panel, panels_of_curves
from rjem_cli.files import append_text, explained, write_atomically

METRICS_FILE = "metrics.jsonl"
EVENT_KEYS = {"step", "event", "diverged_at", "reason", "lr_scale"}
PARTIAL = "partial"  # marks a line that was written because the run stopped between two regular lines
Lines = list[dict[str, Any]]  # of metrics.jsonl
MEASURES = (  # label, names in metrics.jsonl (the second is dashed), log scale
    ("E(x): data solid, chains dashed", ("energy_data", "energy_buffer"), False),
    ("accuracy on validation images", ("val_accuracy",), False),
    ("|dE/dx| on data", ("input_grad_norm",), True),
    ("saturation of the chains", ("saturation",), False),
)
MAX_DRAWN = 1e30  # matplotlib's own sums overflow beyond


class MetricsLog:
    """Running sums on the device, and the lines made of them. A line that cannot be written stays in `pending` and is
    written with the next one."""

    def __init__(self, path: Path):
        self.path = path
        self.sums: dict[str, Tensor] = {}
        self.lines: list[dict[str, Any]] = []
        self.pending: list[dict[str, Any]] = []
        self.stale = False  # whether the file has lines that are not in `lines`

    @property
    def last(self) -> dict[str, float]:
        """The values of the last step that has a line of metrics."""
        lines = [line for line in self.lines if "event" not in line]
        values: dict[str, float] = {}
        for line in lines[-2:]:  # a partial line may complete the regular line of its step
            values |= numbers_in(line) if line["step"] == lines[-1]["step"] else {}
        return values

    def value_at(self, step: int, name: str) -> float | None:
        """The value of a metric at a step; None if it was not measured there."""
        values = [line[name] for line in self.lines if line["step"] == step and name in line]
        return values[-1] if values else None

    def add(self, scalars: dict[str, Tensor]) -> None:
        """Add the scalars of one step, which are on the device."""
        for name, value in {**scalars, "count": torch.ones_like(scalars["loss"])}.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value.detach()

    def means(self) -> dict[str, float]:
        """Means since the previous line; empty before the first step."""
        if not self.sums:
            return {}
        names = sorted(self.sums)  # a loaded state has this order
        values = dict(zip(names, torch.stack([self.sums[name].float() for name in names]).tolist()))
        count = values.pop("count")
        return {name: value / count for name, value in values.items()}

    def add_line(self, step: int, values: dict[str, float], partial: bool) -> None:
        """A `partial` line is written where a run stops between two regular lines. A resumed run removes it, and counts
        its steps in the next regular line."""
        self.append({"step": step, **values, **({PARTIAL: True} if partial else {})})
        if not partial:
            self.sums = {}

    def add_event(self, step: int, diverged_at: int, reason: str, lr_scale: float | None) -> None:
        """Training diverged after step `diverged_at` and returned to `step`; if `lr_scale` is None, it ended there."""
        self.append(
            {"step": step, "event": "divergence", "diverged_at": diverged_at, "reason": reason, "lr_scale": lr_scale}
        )

    def append(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        self.pending.append(line)

    def drop_after(self, step: int, *, keep_events: bool = False, keep_partial: bool = False) -> None:
        """Drop the lines of later steps, and partial lines unless `keep_partial`. Events that happened later are
        dropped too, unless `keep_events`. The next `flush` rewrites the file."""
        self.lines = [
            line
            for line in self.lines
            if (
                keep_events or line["diverged_at"] <= step
                if "event" in line
                else line["step"] <= step and (keep_partial or PARTIAL not in line)
            )
        ]
        self.pending, self.stale = [], True

    def flush(self) -> None:
        """Write the new lines, all or none. Raises RjemError; the next call then writes them too."""
        if self.stale and (self.lines or self.path.exists()):
            write_atomically(self.path, to_text(self.lines).encode())
        elif self.pending:
            append_text(self.path, to_text(self.pending))
        self.pending, self.stale = [], False


def to_text(lines: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The valid lines of a metrics file: those with a step, and events with all their keys. Empty if there is no file.
    Raises RjemError."""
    if not path.exists():
        return []
    with explained("read", path):
        texts = path.read_text(errors="replace").splitlines()
    lines = []
    for text in texts:
        with contextlib.suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict) and is_step(line.get("step")):
                lines.append(line)
    return [
        line for line in lines if "event" not in line or (line.keys() >= EVENT_KEYS and is_step(line["diverged_at"]))
    ]


def events_in(lines: list[dict[str, Any]], step: int | None = None) -> list[dict[str, Any]]:
    """The divergences, up to a step."""
    return [line for line in lines if "event" in line and (step is None or line["diverged_at"] <= step)]


def is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def numbers_in(line: dict[str, Any]) -> dict[str, float]:
    """The metrics of a line. Values that are not finite numbers are left out."""
    values = {name: value for name, value in line.items() if name not in ("step", PARTIAL)}
    numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
    return {name: float(value) for name, value in numbers.items() if not abs(value) > sys.float_info.max}


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
    lines = read_lines(run_dir / METRICS_FILE)
    panels = build_panels([(lines, None)], with_loss=True)
    if not panels:
        return None
    events = [(line["diverged_at"], OKABE_ITO[1]) for line in events_in(lines)]
    path = run_dir / "curves.png"
    write_atomically(path, panels_of_curves(panels, events, run_dir.name))
    return path
