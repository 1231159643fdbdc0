"""The time of network passes on a device, and the batch size that fits into its memory."""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.gradients import LogitsFn, gradient_step, run_step, value_and_grad
from rjem_cli.engine.memory import memory_limit, peak_bytes
from rjem_cli.engine.models.energy import energy
from rjem_cli.engine.models.graphs import EAGER_RUNS
from rjem_cli.engine.parallel import parallel_limit, run_in_parallel
from rjem_cli.errors import is_out_of_memory

MIN_CALLS, MAX_CALLS, ENOUGH_SECONDS = 3, 10, 1.0  # the first call warms up and is not counted
SLOW_SECONDS = 20.0  # a call that takes longer is not repeated

FORWARD = 1 / 3  # of the time of a gradient pass: a backward pass computes two products where a forward pass has one


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


def find_parallel(
    logits_fn: LogitsFn, image_shape: tuple[int, int, int], count: int, limit: int, device: torch.device
) -> int:
    """How many batches of `count` images may go through the network at once: at most `limit`, in half of the memory.
    Call it after a pass over one batch, because the process's peak memory is taken as what each batch needs."""
    memory, peak = memory_limit(), peak_bytes(device)
    parallel = parallel_limit(logits_fn, device, min(limit, memory // 2 // peak if memory and peak else 1))
    if parallel == 1:
        return 1
    try:
        run_pass(logits_fn, torch.zeros(parallel * count, *image_shape, device=device), parallel)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return 1
    return parallel


def run_pass(logits_fn: LogitsFn, x: Tensor, parallel: int) -> None:
    """One gradient step over the images x (B, C, H, W), in `parallel` equal parts at once."""
    step = partial(gradient_step, objective=energy)
    list(run_in_parallel(logits_fn, lambda part: run_step(step, logits_fn, part), x.chunk(parallel), parallel))


def time_pass(
    logits_fn: LogitsFn, image_shape: tuple[int, int, int], count: int, device: torch.device, parallel: int = 1
) -> float:
    """Seconds of one gradient pass over `count` images, in `parallel` equal parts at once."""
    x = torch.zeros(count, *image_shape, device=device)
    for _ in range(EAGER_RUNS if getattr(logits_fn, "graphs", None) else 0):  # so that a graph is timed
        run_pass(logits_fn, x, parallel)
    return median_seconds(lambda: run_pass(logits_fn, x, parallel), device)
