"""Do time and memory grow with the work, and no faster?

Calls rjem with more and more steps, images, moves and larger batches, a process each, and fits lines to its seconds and
to its largest memory. Prints slopes and how well the lines fit, and draws them.

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

FLAT = 0.02
SHORT_RUN = "--preset quickstart --sample-every 100000 --checkpoint-every 100000 --eval-limit 1 --sample-steps 1"


@dataclass
class Series:
    """A command in which `{}` takes each of `values`; `of` names them."""

    name: str
    of: str
    command: str
    values: Sequence[int]
    seconds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)  # MB

    def measure(self, folder: Path) -> None:
        for value in self.values:
            arguments = self.command.format(value, folder=folder, place=f"{self.of}-{value}".replace(" ", "-")).split()
            seconds, memory = measured([sys.executable, "-m", "rjem_cli", *arguments])
            self.seconds.append(seconds)
            self.memory.append(memory)

    def told(self, what: str) -> str:
        """The slope and how well a line fits; of what does not grow, within FLAT of its mean, that alone."""
        values, unit = getattr(self, what), "ms" if what == "seconds" else "kB"
        slope, _, fit = line_of(self.values, values)
        if max(values) - min(values) <= FLAT * max(values):
            return f"the same within {FLAT:.0%}"
        return f"{1000 * slope:.3g} {unit} each, R2 {fit:.3f}"


def measured(command: list[str]) -> tuple[float, float]:
    """(seconds, MB at most) of a process."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def line_of(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """(slope, intercept, share of the variance that the line explains)."""
    slope, intercept = np.polyfit(x, y, 1)
    rest = np.asarray(y) - (slope * np.asarray(x) + intercept)
    return float(slope), float(intercept), 1 - float(rest.var() / np.var(y))


def drawn(found: Sequence[Series]) -> Figure:
    figure = Figure(figsize=(4 * len(found), 6), layout="constrained")
    for column, series in enumerate(found):
        for row, (what, unit) in enumerate((("seconds", "s"), ("memory", "MB"))):
            axes = figure.add_subplot(2, len(found), row * len(found) + column + 1)
            values = getattr(series, what)
            slope, intercept, _ = line_of(series.values, values)
            axes.plot(series.values, values, "o")
            axes.plot(series.values, [slope * x + intercept for x in series.values], "-")
            axes.set(title=f"{series.name}\n{series.told(what)}", xlabel=series.of, ylabel=unit)
            axes.set_ylim(0, 1.1 * max(values))
            axes.title.set_fontsize(9)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run", help="of the preset quickstart")
    parser.add_argument("--figure", type=Path, default=Path("growth.png"))
    options = parser.parse_args()
    draw = f"generate {find_checkpoint(options.run)} -o {{folder}}/{{place}}.npz"
    with tempfile.TemporaryDirectory() as name:
        os.environ["RJEM_HOME"] = f"{name}/home"
        train = f"train {SHORT_RUN} --run {{place}}"
        found = [
            Series("rjem train", "steps", train + " --steps {}", (100, 200, 300, 400)),
            Series("rjem train, 40 steps", "batch", train + " --steps 40 --batch-size {}", (64, 128, 192, 256)),
            Series("rjem generate", "images", draw + " -n {}", (1000, 2000, 3000, 4000)),
            Series("rjem generate, 500 images", "moves", draw + " -n 500 --sgld-steps {}", (50, 100, 150, 200)),
        ]
        for series in found:
            series.measure(Path(name))
            print(
                f"{series.name}\tby {series.of}\t{series.told('seconds')}\tmemory {series.told('memory')}", flush=True
            )
    drawn(found).savefig(options.figure, dpi=100)
    print(options.figure)


if __name__ == "__main__":
    main()
