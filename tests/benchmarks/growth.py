"""Do time and memory grow linearly with the work?

Calls rjem with more and more steps, images, gradient steps and larger batches, one process each, and fits lines to the
seconds and to the peak memory. Prints slopes and the quality of each fit, and plots them.

    python -m tests.benchmarks.growth RUN --figure growth.png
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from rjem_cli.paths import find_checkpoint

FLAT = 0.02  # relative range of a quantity that does not grow
SHORT_RUN = "--preset quickstart --sample-every 100000 --checkpoint-every 100000 --eval-limit 1 --sample-steps 1"


@dataclass
class Series:
    """A command in which each of `values` replaces `{}`; `variable` names them."""

    name: str
    variable: str
    command: str
    values: Sequence[int]
    seconds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)  # MB

    def measure(self, folder: Path) -> None:
        for value in self.values:
            output = f"{self.variable}-{value}".replace(" ", "-")
            arguments = self.command.format(value, folder=folder, output=output).split()
            seconds, memory = measure_process([sys.executable, "-m", "rjem_cli", *arguments])
            self.seconds.append(seconds)
            self.memory.append(memory)

    def describe(self, quantity: str) -> str:
        """The slope and R2 of `seconds` or `memory`, or that it does not grow."""
        values, unit = getattr(self, quantity), "ms" if quantity == "seconds" else "kB"
        slope, _, fit = fit_line(self.values, values)
        if max(values) - min(values) <= FLAT * max(values):
            return f"constant within {FLAT:.0%}"
        return f"{1000 * slope:.3g} {unit} each, R2 {fit:.3f}"


def measure_process(command: list[str]) -> tuple[float, float]:
    """(seconds, peak memory in MB)."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} exited with {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def fit_line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """(slope, intercept, R2)."""
    slope, intercept = np.polyfit(x, y, 1)
    residuals = np.asarray(y) - (slope * np.asarray(x) + intercept)
    return float(slope), float(intercept), 1 - float(residuals.var() / np.var(y))


def plot(all_series: Sequence[Series]) -> Figure:
    figure = Figure(figsize=(4 * len(all_series), 6), layout="constrained")
    for column, series in enumerate(all_series):
        for row, (quantity, unit) in enumerate((("seconds", "s"), ("memory", "MB"))):
            axes = figure.add_subplot(2, len(all_series), row * len(all_series) + column + 1)
            values = getattr(series, quantity)
            slope, intercept, _ = fit_line(series.values, values)
            axes.plot(series.values, values, "o")
            axes.plot(series.values, [slope * x + intercept for x in series.values], "-")
            axes.set(title=f"{series.name}\n{series.describe(quantity)}", xlabel=series.variable, ylabel=unit)
            axes.set_ylim(0, 1.1 * max(values))
            axes.title.set_fontsize(9)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run", help="a run with the preset quickstart")
    parser.add_argument("--figure", type=Path, default=Path("growth.png"))
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the values, except for batch sizes")
    options = parser.parse_args()

    def scaled(*counts: int) -> list[int]:
        return [max(1, round(count * options.scale)) for count in counts]

    generate = f"generate {find_checkpoint(options.run)} -o {{folder}}/{{output}}.npz"
    chains = generate + " -n 500 --sgld-steps {}"
    with tempfile.TemporaryDirectory() as name:
        os.environ["RJEM_HOME"] = f"{name}/home"
        train = f"train {SHORT_RUN} --run {{output}}"
        all_series = [
            Series("rjem train", "steps", train + " --steps {}", scaled(100, 200, 300, 400)),
            Series("rjem train, 40 steps", "batch", train + " --steps 40 --batch-size {}", (64, 128, 192, 256)),
            Series("rjem generate", "images", generate + " -n {}", scaled(1000, 2000, 3000, 4000)),
            Series("rjem generate, 500 images", "SGLD steps", chains, scaled(50, 100, 150, 200)),
        ]
        for series in all_series:
            series.measure(Path(name))
            seconds, memory = series.describe("seconds"), series.describe("memory")
            print(f"{series.name}\tby {series.variable}\t{seconds}\tmemory {memory}", flush=True)
    plot(all_series).savefig(options.figure, dpi=100)
    print(options.figure)


if __name__ == "__main__":
    main()
