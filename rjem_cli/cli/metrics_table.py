"""The live table of a training run: each metric with its history."""

from dataclasses import dataclass, field

from rjem_cli.cli.formatting import sparkline
from rjem_cli.cli.tables import Table

LABELS = {  # metrics of a line of metrics.jsonl
    "cross_entropy": "cross-entropy",
    "val_accuracy": "accuracy (val)",
    "energy_data": "E(x) of data",
    "energy_buffer": "E(x) of chains",
    "input_grad_norm": "|dE/dx| on data",
    "saturation": "saturation",
    "grad_norm": "gradient norm",
    "divergences": "divergences",
    "images_per_second": "images/s",
}
PERCENTAGES = ("val_accuracy", "saturation")
COLUMNS = ("metric", "now", "history")
MAX_HISTORY = 512  # values; a longer history loses every second one


@dataclass
class MetricsTable:
    """The values of each metric, one for each line of metrics."""

    histories: dict[str, list[float]] = field(default_factory=dict)

    def add(self, metrics: dict[str, float]) -> None:
        for name in LABELS:
            if name in metrics:
                history = self.histories.setdefault(name, [])
                history.append(metrics[name])
                if len(history) > MAX_HISTORY:
                    del history[-2::-2]  # keeps the last one

    def table(self) -> Table:
        rows = [
            (label, f"{history[-1]:.1%}" if name in PERCENTAGES else f"{history[-1]:.4g}", sparkline(history))
            for name, label in LABELS.items()
            if (history := self.histories.get(name))
        ]
        return "", COLUMNS, rows
