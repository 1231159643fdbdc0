"""metrics.jsonl: means since the last line, summed on the device, and a line for each divergence."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rjem_cli.engine.chains.sgld import energy_gradient
from rjem_cli.engine.model.energy import energy
from rjem_cli.files import explained, write_atomically

WALL = 0.99  # of [-1, 1]


class Metrics:
    """Running sums, and the file that their means go to."""

    def __init__(self, path: Path):
        self.path = path
        self.sums: dict[str, Tensor] = {}
        self.last: dict[str, float] = {}  # line, and its step
        self.last_step = 0
        self.events: list[dict[str, Any]] = []

    def add(self, named: dict[str, Tensor]) -> None:
        """Scalars of one step, on the device."""
        for name, value in {**named, "count": torch.ones_like(named["loss"])}.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value.detach()

    def means(self, more: dict[str, float]) -> dict[str, float]:
        """Of the steps since the last line, and `more`; six digits each. The sums begin anew."""
        names = list(self.sums)
        values = dict(zip(names, torch.stack([self.sums[name].float() for name in names]).tolist()))
        count = values.pop("count")
        self.sums = {}
        means = {name: value / count for name, value in values.items()}
        return {name: float(f"{value:.6g}") for name, value in {**means, **more}.items()}

    def write(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """Append a line."""
        self.last, self.last_step = values, step
        self.append({"step": step, **values})
        return values

    def add_event(self, step: int, at: int, what: str, rate_scale: float | None) -> None:
        """Append a line of its own: training diverged after step `at`, and went back to `step`; without a rate it ended
        there."""
        event = {"step": step, "event": "divergence", "at": at, "what": what, "rate_scale": rate_scale}
        self.events.append(event)
        self.append(event)

    def append(self, line: dict[str, Any]) -> None:
        with explained("write", self.path), self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def val_accuracy_at(self, step: int) -> float | None:
        return self.last.get("val_accuracy") if self.last_step == step else None

    def forget_after(self, step: int, events: int) -> None:
        """Drop the lines of steps that will be taken (again), all but the first `events` events, and what a kill left
        half written."""
        self.last, self.last_step, self.events = {}, 0, []
        if not self.path.exists():
            return
        kept = []
        with explained("read", self.path):
            lines = self.path.read_text(errors="replace").splitlines()
        for line in lines:
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if not isinstance(values, dict) or not isinstance(values.get("step"), int) or values["step"] > step:
                continue
            if "event" in values:
                if len(self.events) == events:
                    continue
                self.events.append(values)
            else:
                numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
                self.last = {name: float(value) for name, value in numbers.items() if name != "step"}
                self.last_step = values["step"]
            kept.append(line)
        write_atomically(self.path, "".join(line + "\n" for line in kept).encode())


def saturation(x: Tensor) -> Tensor:
    """Share of the values at a wall of the box."""
    return (x.abs() > WALL).float().mean()


def look_at_chains(logits_of: Callable[[Tensor], Tensor], x: Tensor, stored: Tensor) -> dict[str, float]:
    """Of data x and buffer images, both (B, C, H, W): mean energies, and R1, the mean L2 norm of dE/dx on data.
    `logits_of` must be frozen."""
    energy_data_B, gradient = energy_gradient(lambda x: energy(logits_of(x)), x)
    with torch.no_grad():
        energy_buffer_B = energy(logits_of(stored))
    found = {
        "energy_data": energy_data_B.mean(),
        "energy_buffer": energy_buffer_B.mean(),
        "r1": gradient.flatten(1).norm(dim=1).mean(),
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
