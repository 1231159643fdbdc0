"""metrics.jsonl: means since the last line, summed on the device, and a line for each divergence."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rjem_cli.engine.chains.sgld import energy_gradient
from rjem_cli.engine.model.energy import energy
from rjem_cli.files import append_text, explained, write_atomically

WALL = 0.99  # of [-1, 1]


class Metrics:
    """Running sums, and the file that their means go to. Lines wait in memory until `flush` could write them."""

    def __init__(self, path: Path):
        self.path = path
        self.sums: dict[str, Tensor] = {}
        self.last: dict[str, float] = {}  # line, and its step
        self.last_step = 0
        self.events: list[dict[str, Any]] = []
        self.waiting: list[dict[str, Any]] = []

    def add(self, named: dict[str, Tensor]) -> None:
        """Scalars of one step, on the device."""
        for name, value in {**named, "count": torch.ones_like(named["loss"])}.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value.detach()

    def means(self, more: dict[str, float]) -> dict[str, float]:
        """Of the steps since the last line, and `more`; six digits each."""
        names = list(self.sums)
        values = dict(zip(names, torch.stack([self.sums[name].float() for name in names]).tolist()))
        count = values.pop("count")
        means = {name: value / count for name, value in values.items()}
        return {name: float(f"{value:.6g}") for name, value in {**means, **more}.items()}

    def add_line(self, step: int, values: dict[str, float], end: list[str]) -> None:
        """Means of the steps so far. Those named in `end` are there since the run ends here, and are dropped where it
        goes on; if all are, the sums go on too, else they begin anew."""
        self.last, self.last_step = values, step
        self.waiting.append({"step": step, **values, **({"end": end} if end else {})})
        if len(end) < len(values):
            self.sums = {}

    def add_event(self, step: int, at: int, what: str, rate_scale: float | None) -> None:
        """A line of its own: training diverged after step `at`, and went back to `step`; without a rate it ended
        there."""
        event = {"step": step, "event": "divergence", "at": at, "what": what, "rate_scale": rate_scale}
        self.events.append(event)
        self.waiting.append(event)

    def flush(self) -> None:
        """Append what waits, whole or not at all. Raises RjemError; then it waits on."""
        if self.waiting:
            append_text(self.path, "".join(json.dumps(line) + "\n" for line in self.waiting))
        self.waiting = []

    def val_accuracy_at(self, step: int) -> float | None:
        return self.last.get("val_accuracy") if self.last_step == step else None

    def forget_after(self, step: int, events: int, at_end: bool) -> None:
        """Drop the lines of steps that will be taken (again), all but the first `events` events, what was measured for
        an end unless this is that end, and what a kill left half written. Raises RjemError."""
        self.flush()
        self.last, self.last_step, self.events = {}, 0, []
        kept = []
        for values in read_lines(self.path):
            if not at_end:
                values = beyond_the_end(values)
            if values["step"] > step or len(values) == 1:
                continue
            if "event" in values:
                if len(self.events) == events:
                    continue
                self.events.append(values)
            else:
                self.last, self.last_step = numbers_in(values), values["step"]
            kept.append(json.dumps(values) + "\n")
        if self.path.exists():
            write_atomically(self.path, "".join(kept).encode())


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Each line that holds values and a step; none of a file that is not there."""
    if not path.exists():
        return
    with explained("read", path):
        lines = path.read_text(errors="replace").splitlines()
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            values = json.loads(line)
            if isinstance(values, dict) and isinstance(values.get("step"), int):
                yield values


def beyond_the_end(line: dict[str, Any]) -> dict[str, Any]:
    """What is left of a line where its run goes on."""
    end = line.pop("end", None)
    dropped = set(map(str, end)) - {"step"} if isinstance(end, list) else ()
    return {name: value for name, value in line.items() if name not in dropped}


def numbers_in(line: dict[str, Any]) -> dict[str, float]:
    """What a line measured."""
    return {name: float(value) for name, value in line.items() if name != "step" and isinstance(value, (int, float))}


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
