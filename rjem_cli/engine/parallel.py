"""Independent blocks of images side by side on a CPU, each with threads of its own.

By default PyTorch shares the work of each operation among its threads. They then wait for each other some hundred times
per network pass, which costs time on an idle machine, and much more on a busy one. Blocks that run whole chains do not
wait for each other.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from rjem_cli.engine.kernels import kernels_of

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

MAX_PARALLEL = 4  # Python runs one thread at a time, and each block needs memory for its pass

this_thread = threading.local()  # `cancelled`: the event that ends its work


def parallel_limit(logits_fn: Any, device: torch.device, limit: int) -> int:
    """How many blocks may go through this network at once, at most `limit`. 1 on a GPU, with one thread, and for a
    network whose forward pass may change its own state."""
    if device.type != "cpu" or not getattr(logits_fn, "thread_safe", False):
        return 1
    return max(1, min(MAX_PARALLEL, torch.get_num_threads(), limit))


def run_in_parallel(
    logits_fn: Any, work: Callable[[ItemT], ResultT], items: Iterable[ItemT], parallel: int
) -> Generator[ResultT, None, None]:
    """`work(item)`, which runs `logits_fn`, for each item, in order, with up to `parallel` items at once. If `work`
    raises, or the caller closes the iterator, the work that still runs ends before its next gradient step."""
    if parallel == 1:
        yield from map(work, items)
        return
    threads, cancelled = torch.get_num_threads(), threading.Event()
    running: deque[Future[ResultT]] = deque()

    def start_thread() -> None:
        torch.get_num_threads()  # PyTorch's first look at the threads of this thread would undo the next line
        torch.set_num_threads(max(1, threads // parallel))
        this_thread.cancelled = cancelled

    # a pass sets the kernels of the whole process and restores them; set here too, none is restored while others run
    with kernels_of(logits_fn).active(), ThreadPoolExecutor(parallel, initializer=start_thread) as pool:
        try:
            for item in items:
                running.append(pool.submit(work, item))
                if len(running) > parallel:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            cancelled.set()
            for future in running:
                future.cancel()
            torch.set_num_threads(threads)  # new threads would start with the number that a worker set


def check_cancelled() -> None:
    """Raises CancelledError in work whose result nobody waits for (`run_in_parallel`)."""
    cancelled = getattr(this_thread, "cancelled", None)
    if cancelled is not None and cancelled.is_set():
        raise CancelledError
