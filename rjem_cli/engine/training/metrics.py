"""metrics.jsonl: means since the last line, summed on the device so that training never waits for the host."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from rjem_cli.engine.chains.sgld import energy_gradient
from rjem_cli.engine.model.energy import energy
from rjem_cli.errors import DivergedError
from rjem_cli.paths import explained, write_atomically


class Metrics:
    """Running sums, and the file that their means go to."""

    def __init__(self, path: Path):
        self.path = path
        self.sums: dict[str, Tensor] = {}
        self.last: dict[str, float] = {}

    def add(self, named: dict[str, Tensor]) -> None:
        """Scalars of one step, on the device."""
        for name, value in {**named, "count": torch.ones_like(named["loss"])}.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value.detach()

    def write(self, step: int, more: dict[str, float]) -> dict[str, float]:
        """Append a line with the means and `more`. Raises DivergedError, after writing, when a value is not finite."""
        names = list(self.sums)
        values = dict(zip(names, torch.stack([self.sums[name].float() for name in names]).tolist()))
        count = values.pop("count")
        self.sums = {}
        means = {name: value / count for name, value in values.items()}
        self.last = {name: float(f"{value:.6g}") for name, value in {**means, **more}.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in self.last.items()}
        with explained("write", self.path), self.path.open("a") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")
        lost = [name for name, value in finite.items() if value is None]
        if lost:
            raise DivergedError(
                f"training diverged at step {step}: {lost[0]} is not finite; the checkpoints before it are in "
                f"{self.path.parent / 'checkpoints'}; try a lower --lr or a --max-grad-norm"
            )
        return self.last

    def forget_after(self, step: int) -> None:
        """Drop the lines of steps that will be taken (again), and one that a kill left half written."""
        if not self.path.exists():
            return
        kept = []
        with explained("read", self.path):
            lines = self.path.read_text(errors="replace").splitlines()
        for line in lines:
            try:
                values = json.loads(line)
            except ValueError:
                continue
            if isinstance(values, dict) and values.get("step", step + 1) <= step:
                kept.append(line)
                self.last = {name: value for name, value in values.items() if name != "step"}
        write_atomically(self.path, "".join(line + "\n" for line in kept).encode())


def look_at_chains(logits_of: Callable[[Tensor], Tensor], x: Tensor, stored: Tensor) -> dict[str, float]:
    """Of data x and buffer images, both (B, C, H, W): mean energies, R1 (mean L2 norm of dE/dx on data), and the share
    of saturated values in the buffer. `logits_of` must be frozen."""
    energy_data_B, gradient = energy_gradient(lambda x: energy(logits_of(x)), x)
    with torch.no_grad():
        energy_buffer_B = energy(logits_of(stored))
    found = {
        "energy_data": energy_data_B.mean(),
        "energy_buffer": energy_buffer_B.mean(),
        "r1": gradient.flatten(1).norm(dim=1).mean(),
        "saturation": (stored.abs() > 0.99).float().mean(),
    }
    return dict(zip(found, torch.stack(list(found.values())).tolist()))


class Clock:
    """Steps per second since the last question."""

    def __init__(self, step: int):
        self.step, self.time = step, time.perf_counter()

    def steps_per_second(self, step: int) -> float:
        now = time.perf_counter()
        rate = (step - self.step) / max(1e-9, now - self.time)
        self.step, self.time = step, now
        return rate
