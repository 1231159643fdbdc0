"""The time of network passes on a device, and the batch size that fits into its memory."""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.gradients import LogitsFn, gradient_step, run_step, value_and_grad
from rjem_cli.engine.models.energy import energy
from rjem_cli.engine.models.graphs import EAGER_RUNS

MIN_CALLS, MAX_CALLS, ENOUGH_SECONDS = 3, 10, 1.0  # the first call warms up and is not counted
SLOW_SECONDS = 20.0  # a call that takes longer is not repeated


def median_seconds(call: Callable[[], object], device: torch.device, max_calls: int = MAX_CALLS) -> float:
    """The median time of a call, without the first. It is called at least MIN_CALLS times and, while the total is below
    ENOUGH_SECONDS, at most `max_calls` times. A first call of more than SLOW_SECONDS is the only one, and counts."""
    seconds: list[float] = []
    while len(seconds) < MIN_CALLS or (len(seconds) < max_calls and sum(seconds) < ENOUGH_SECONDS):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
        if seconds[0] > SLOW_SECONDS:
            return seconds[0]
    return statistics.median(seconds[1:])


def synchronize(device: torch.device) -> None:
    """Wait for the work of a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def find_batch_size(
    logits_fn: LogitsFn, image_shape: tuple[int, int, int], batches: BatchSizer, device: torch.device
) -> int:
    """The largest batch size whose gradient fits into memory, at most `batches.batch_size`, found by halving."""
    batches.run_largest(
        lambda count: value_and_grad(logits_fn, energy, torch.zeros(count, *image_shape, device=device))
    )
    return batches.max_batch_size


def time_pass(logits_fn: LogitsFn, image_shape: tuple[int, int, int], count: int, device: torch.device) -> float:
    """Seconds of one gradient pass over `count` images."""
    x = torch.zeros(count, *image_shape, device=device)
    step = partial(gradient_step, objective=energy)
    for _ in range(EAGER_RUNS if getattr(logits_fn, "graphs", None) else 0):  # so that a graph is timed
        run_step(step, logits_fn, x)
    return median_seconds(lambda: run_step(step, logits_fn, x), device)
