"""metrics.jsonl: means since the line before, summed on the device, and a line for each divergence."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rjem_cli.engine.chains.sgld import energy_gradient
from rjem_cli.engine.model.energy import energy
from rjem_cli.files import append_text, explained, write_atomically

WALL = 0.99  # of [-1, 1]
EVENT = {"step", "event", "at", "what", "rate_scale"}


class Metrics:
    """Running sums on the device, the lines made of them, and the file that `flush` brings up to them."""

    def __init__(self, path: Path):
        self.path = path
        self.sums: dict[str, Tensor] = {}
        self.lines: list[dict[str, Any]] = []
        self.written: int | None = None  # of the lines; None where the file must be written anew

    @property
    def events(self) -> list[dict[str, Any]]:
        return events_in(self.lines)

    @property
    def measured(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if "event" not in line]

    @property
    def last(self) -> dict[str, float]:
        """What the last line measured."""
        return numbers_in(self.measured[-1]) if self.measured else {}

    def add(self, named: dict[str, Tensor]) -> None:
        """Scalars of one step, on the device."""
        for name, value in {**named, "count": torch.ones_like(named["loss"])}.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value.detach()

    def means(self, more: dict[str, float]) -> dict[str, float]:
        """Of the steps since the last line, and `more`; six digits each."""
        names = sorted(self.sums)  # as a state that was read again has them
        values = dict(zip(names, torch.stack([self.sums[name].float() for name in names]).tolist()))
        count = values.pop("count")
        means = {name: value / count for name, value in values.items()}
        return {name: float(f"{value:.6g}") for name, value in {**means, **more}.items()}

    def add_line(self, step: int, values: dict[str, float], end: list[str]) -> None:
        """Means of the steps so far. Those named in `end` are there because the run ends here, and are dropped where it
        goes on; if all are, the sums go on too, else they begin anew."""
        self.lines.append({"step": step, **values, **({"end": end} if end else {})})
        if len(end) < len(values):
            self.sums = {}

    def add_event(self, step: int, at: int, what: str, rate_scale: float | None) -> None:
        """A line of its own: training diverged after step `at`, and went back to `step`; without a rate it ended
        there."""
        self.lines.append({"step": step, "event": "divergence", "at": at, "what": what, "rate_scale": rate_scale})

    def flush(self) -> None:
        """Write what is not in the file yet, whole or not at all. Raises RjemError; then it stays to be written."""
        if self.written is None and (self.lines or self.path.exists()):
            write_atomically(self.path, text_of(self.lines).encode())
        elif self.written is not None and self.unwritten:
            append_text(self.path, text_of(self.unwritten))
        self.written = len(self.lines)

    @property
    def unwritten(self) -> list[dict[str, Any]]:
        """Lines that `flush` would write."""
        return self.lines[self.written or 0 :]

    def read(self, unwritten: list[dict[str, Any]]) -> None:
        """The lines that the file holds, but for what a kill left half written, and those that it should. Raises
        RjemError."""
        held = read_lines(self.path)
        self.lines, self.written = held + [line for line in unwritten if line not in held], None

    def forget_after(self, step: int, events: int, at_end: bool) -> None:
        """Drop the lines of steps that will be taken (again), all but the first `events` events, and what was measured
        for an end unless this is that end."""
        kept: list[dict[str, Any]] = []
        seen = 0
        for line in self.lines:
            if "event" in line:
                seen += 1
                kept += [line] if seen <= events else []
            elif line["step"] <= step:
                line = line if at_end else beyond_the_end(line)
                kept += [line] if len(line) > 1 else []
        self.lines, self.written = kept, None

    def val_accuracy_at(self, step: int) -> float | None:
        found = [line for line in self.measured if line["step"] == step]
        return numbers_in(found[-1]).get("val_accuracy") if found else None


def text_of(lines: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The valid lines of a file; none of one that is not there. Raises RjemError."""
    if not path.exists():
        return []
    with explained("read", path):
        lines = path.read_text(errors="replace").splitlines()
    found = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            found.append(json.loads(line))
    return valid_lines(found)


def events_in(lines: list[dict[str, Any]], step: int | None = None) -> list[dict[str, Any]]:
    """The divergences among lines, up to a step."""
    return [line for line in lines if "event" in line and (step is None or line["at"] <= step)]


def valid_lines(found: Any) -> list[dict[str, Any]]:
    """Those with a step, and if they are events with all that is said of one."""
    lines = [line for line in found if isinstance(line, dict)] if isinstance(found, list) else []
    lines = [line for line in lines if is_step(line.get("step"))]
    return [line for line in lines if "event" not in line or (line.keys() >= EVENT and is_step(line["at"]))]


def is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def beyond_the_end(line: dict[str, Any]) -> dict[str, Any]:
    """What is left of a line where its run goes on."""
    end = line.get("end")
    dropped = {"end", *(map(str, end) if isinstance(end, list) else ())} - {"step"}
    return {name: value for name, value in line.items() if name not in dropped}


def numbers_in(line: dict[str, Any]) -> dict[str, float]:
    """What a line measured."""
    named = {name: value for name, value in line.items() if name != "step" and isinstance(value, (int, float))}
    return {name: float(value) for name, value in named.items() if not abs(value) > sys.float_info.max}


def saturation(x: Tensor) -> Tensor:
    """Share of the values at a wall of the box."""
    return (x.abs() > WALL).float().mean()


class ChainLooks(NamedTuple):
    """E(x) of data and of chains, (B,) each, and the L2 norm of dE/dx on data, (B,); on the host."""

    energy_data_B: Tensor
    energy_buffer_B: Tensor
    gradient_norm_B: Tensor

    def means(self) -> dict[str, float]:
        """`input_grad_norm` is the mean norm; the literature's R1 penalty is the mean of its square."""
        return dict(zip(("energy_data", "energy_buffer", "input_grad_norm"), (float(part.mean()) for part in self)))


def look_at_chains(logits_of: Callable[[Tensor], Tensor], x: Tensor, stored: Tensor) -> ChainLooks:
    """Of data x and buffer images, both (B, C, H, W). `logits_of` must be frozen."""
    energy_data_B, gradient = energy_gradient(lambda x: energy(logits_of(x)), x)
    with torch.no_grad():
        energy_buffer_B = energy(logits_of(stored))
    norms = gradient.flatten(1).norm(dim=1)
    return ChainLooks(energy_data_B.cpu(), energy_buffer_B.cpu(), norms.cpu())


class Clock:
    """Steps per second since the last question, and the time since a checkpoint was last written, or tried to be."""

    def __init__(self, step: int):
        self.step, self.time = step, time.perf_counter()
        self.saved_at = self.time

    def steps_per_second(self, step: int) -> float:
        now = time.perf_counter()
        rate = (step - self.step) / max(1e-9, now - self.time)
        self.step, self.time = step, now
        return rate

    def minutes_since_save(self) -> float:
        return (time.perf_counter() - self.saved_at) / 60

    def save(self) -> None:
        self.saved_at = time.perf_counter()
