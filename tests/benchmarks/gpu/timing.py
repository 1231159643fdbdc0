"""Times of calls that take turns, so that other load on the machine slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from rjem_cli.engine.runtime import Runtime
from rjem_cli.engine.timing import synchronize
from tests.benchmarks.speed import Call, quartiles, time_call

SHORT_SECONDS = 0.02  # a call that takes less is repeated within one timing
SLOW_SECONDS = 10.0  # a call that takes longer warms up once only
REPEATS = 3  # of a measurement of the peak

Times = dict[str, list[float]]


def interleave(calls: dict[str, Call], device: torch.device, seconds: float, rounds: int) -> Times:
    """Seconds of each call, in turns: at least one round, then as many as fit into `seconds`, at most `rounds`. Every
    second round goes backwards. Two calls each warm up; they record graphs and choose kernels."""
    started, repeats = time.monotonic(), {}
    for name, call in calls.items():
        warm = time_call(call, device)
        warm = warm if warm > SLOW_SECONDS else time_call(call, device)
        repeats[name] = max(1, round(SHORT_SECONDS / max(warm, 1e-6)))
    times: Times = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            times[name].append(time_call(repeated(calls[name], repeats[name]), device) / repeats[name])
        if time.monotonic() - started > seconds:
            break
    return times


def repeated(call: Call, count: int) -> Call:
    def call_repeatedly() -> None:
        for _ in range(count):
            call()

    return call_repeatedly


def medians(times: Times) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in times.items()}


def ratios(times: Times, of: str, to: str) -> list[float]:
    """First quartile, median and third of the ratios of two calls in the same round."""
    return quartiles([a / b for a, b in zip(times[of], times[to])])


def host_seconds(call: Call, device: torch.device) -> float:
    """The time until a call returns, without waiting for the device: the shortest of a few."""
    found = []
    for _ in range(REPEATS):
        synchronize(device)
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
        synchronize(device)
    return min(found)


def matmul_peak(runtime: Runtime, side: int) -> Callable[[], float]:
    """A function that measures the FLOP/s of a large matrix product in the runtime's precision: the best of a few."""
    a, b = (torch.randn(side, side, device=runtime.device, dtype=runtime.dtype) for _ in range(2))
    count = 10 if runtime.device.type == "cuda" else 1
    call = repeated(lambda: a @ b, count)
    return lambda: count * 2 * side**3 / min(time_call(call, runtime.device) for _ in range(REPEATS))
