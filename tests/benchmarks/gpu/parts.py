"""A part of the benchmark, the table that it fills, and the process that it runs in."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rjem_cli.errors import summarize
from rjem_cli.files import write_json
from tests.benchmarks.gpu.sizes import Sizes

GRACE_SECONDS = 30  # a part ends by itself at its deadline, but a call may have started just before
STOP_SECONDS = 10  # from SIGTERM to SIGKILL
PRETEND = "tests.pretend_cuda"
Row = dict[str, Any]


class Skipped(Exception):
    """Says why there is nothing to measure here."""


class Part(NamedTuple):
    """`run` fills the table of a Bench. `weight`: its share of the time. `seconds`: its time if it has a fixed one."""

    name: str
    title: str
    run: Callable[[Bench], None]
    weight: float = 1.0
    seconds: float | None = None
    by_default: bool = True


@dataclass
class Result:
    """`status`: done, failed or skipped; `reason`: of the last two, one line. `left_out`: what was not measured, by
    the reason."""

    name: str
    title: str
    status: str = "failed"
    reason: str = ""
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Bench:
    """What a part measures on, and its result, which is written to `path` after every row."""

    device: torch.device
    sizes: Sizes
    deadline: float
    path: Path
    result: Result

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def precisions(self) -> tuple[str, ...]:
        """The faster ones."""
        return ("tf32", "bf16") if self.on_cuda else ("fp32", "bf16")

    @property
    def is_pretend(self) -> bool:
        """Whether this process runs under tests/pretend_cuda, which does not capture streams or limit memory."""
        return PRETEND in sys.modules

    def need_cuda(self, reason: str, pretend_too: bool = True) -> None:
        if not self.on_cuda:
            raise Skipped(reason)
        if self.is_pretend and not pretend_too:
            raise Skipped("not on the pretend device")

    def leave_out(self, name: str, reason: str) -> None:
        names = self.result.left_out.setdefault(reason, [])
        if name not in names:
            names.append(name)

    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def note(self, text: str) -> None:
        self.result.notes.append(text)
        self.save()

    def measure(self, labels: Row, call: Callable[[], Row]) -> None:
        """Add the row `labels` with what `call` returns, or with its error. Nothing is measured after the deadline."""
        name = " ".join(map(str, labels.values()))
        try:
            if self.seconds_left() <= 0:
                raise Skipped("no time left")
            self.result.rows.append({**labels, **call()})
        except Skipped as reason:
            self.leave_out(name, str(reason))
        except Exception as error:  # the other rows are worth having
            self.result.rows.append({**labels, "error": describe_error(error)})
        self.save()

    def finish(self) -> None:
        """Failed if a row is."""
        failed = [row for row in self.result.rows if "error" in row]
        self.result.status = "failed" if failed else "done"
        if failed:
            self.result.reason = (
                f"{len(failed)} of {len(self.result.rows)} rows failed; the first: {failed[0]['error']}"
            )
        elif not self.result.rows:
            self.result.status = "skipped"
            self.result.reason = "; ".join(self.result.left_out) or "nothing to measure"

    def save(self) -> None:
        write_json(self.path, asdict(self.result))


def describe_error(error: BaseException) -> str:
    """One line."""
    return f"{type(error).__name__}: {summarize(error)}"


def run_here(part: Part, bench: Bench) -> None:
    """Run a part in this process and write its result."""
    started = time.monotonic()
    try:
        part.run(bench)
        bench.finish()
    except Skipped as reason:
        bench.result.status, bench.result.reason = "skipped", str(reason)
    except Exception as error:
        bench.result.status, bench.result.reason = "failed", describe_error(error)
    bench.result.seconds = round(time.monotonic() - started, 1)
    bench.save()


def run_part(part: Part, device: str, sizes: Sizes, seconds: float, folder: Path) -> Result:
    """Run a part in a forked process, for at most `seconds` and GRACE_SECONDS. Its rows are kept even if it is killed.
    Fork, because it takes no time; this process never initializes CUDA."""
    path, started = folder / f"{part.name}.json", time.monotonic()

    def work() -> None:
        if device.startswith("cuda:"):
            torch.cuda.set_device(device)
        os.setsid()  # so that the part ends together with the processes that it starts
        bench = Bench(torch.device(device), sizes, started + seconds, path, Result(part.name, part.title))
        run_here(part, bench)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    try:
        process.join(seconds + GRACE_SECONDS)
        in_time = process.exitcode is not None
    finally:
        stop(process)
    result = read_result(path) or Result(part.name, part.title)
    if not in_time:
        result.status, result.reason = "failed", f"stopped after {time.monotonic() - started:.0f} s"
    elif process.exitcode:
        result.status, result.reason = "failed", f"its process ended with {process.exitcode}"
    result.seconds = result.seconds or round(time.monotonic() - started, 1)
    return result


def stop(process: Any) -> None:
    """End a part and the processes that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            process.join(STOP_SECONDS)


def read_result(path: Path) -> Result | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Result(**json.loads(path.read_text()))
    return None


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
