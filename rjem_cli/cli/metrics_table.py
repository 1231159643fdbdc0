"""The table one watches while a network trains: what each measure is now, and how it came there."""

from __future__ import annotations

from dataclasses import dataclass, field

from rjem_cli.cli.formatting import sparkline

MEASURES = {  # of a line of metrics: what the table calls it
    "cross_entropy": "cross-entropy",
    "val_accuracy": "accuracy (val)",
    "energy_data": "E(x) of data",
    "energy_buffer": "E(x) of chains",
    "input_grad_norm": "|dE/dx| on data",
    "saturation": "at the walls",
    "grad_norm": "gradient norm",
    "divergences": "divergences",
    "images_per_second": "images/s",
}
SHARES = ("val_accuracy", "saturation")
COLUMNS = ("measure", "now", "course")
LONGEST = 512  # values of a course, of which a sparkline shows few; then every second one goes


@dataclass
class MetricsTable:
    """The courses of a run's measures, a value a line of metrics."""

    histories: dict[str, list[float]] = field(default_factory=dict)

    def add(self, metrics: dict[str, float]) -> None:
        for name in MEASURES:
            if name in metrics:
                history = self.histories.setdefault(name, [])
                history.append(metrics[name])
                if len(history) > LONGEST:
                    del history[-2::-2]  # the last one stays

    def table(self) -> tuple[str, tuple[str, ...], list[tuple[str, str, str]]]:
        """Title, columns and rows."""
        return "", COLUMNS, self.rows()

    def rows(self) -> list[tuple[str, str, str]]:
        return [
            (label, f"{history[-1]:.1%}" if name in SHARES else f"{history[-1]:.4g}", sparkline(history))
            for name, label in MEASURES.items()
            if (history := self.histories.get(name))
        ]
