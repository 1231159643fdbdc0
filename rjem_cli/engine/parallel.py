"""Independent images side by side on a CPU: each part of the work has threads of its own.

By default PyTorch shares the work of each operation among its threads. They then wait for each other some hundred times
per network pass, which costs time on an idle machine, and much more on a busy one. Parts that run whole chains or
attacks wait for each other once.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from itertools import repeat
from typing import Any, TypeVar

import torch
from torch import Tensor

from rjem_cli.engine.batching import TensorsT, concatenate
from rjem_cli.engine.kernels import kernels_of

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

MAX_PARTS = 4  # Python runs one thread at a time, and each part needs memory for its pass
MIN_IMAGES = 16  # in a part; a pass of fewer takes nearly as long

current_part = threading.local()  # `cancelled`: the event that stops a part


def count_parts(logits_fn: Any, device: torch.device, limit: int) -> int:
    """How many parts may run at once with this network, at most `limit`. On a GPU, with one thread, or for a network
    whose forward pass may change its own state: 1."""
    if device.type != "cpu" or not getattr(logits_fn, "thread_safe", False):
        return 1
    return max(1, min(MAX_PARTS, torch.get_num_threads(), limit))


def run_parts(
    logits_fn: Any, work: Callable[[ItemT], ResultT], items: Iterable[ItemT], parts: int
) -> Generator[ResultT, None, None]:
    """`work(item)`, which runs `logits_fn`, for each item, in order, with up to `parts` items at once. If `work`
    raises, or the caller closes the iterator, parts that run end before their next gradient step."""
    if parts == 1:
        yield from map(work, items)
        return
    threads, cancelled = torch.get_num_threads(), threading.Event()
    running: deque[Future[ResultT]] = deque()

    def start_thread() -> None:
        torch.get_num_threads()  # PyTorch's first look at the threads of this thread would undo the next line
        torch.set_num_threads(max(1, threads // parts))
        current_part.cancelled = cancelled

    # each pass sets its kernels for the whole process; here they are set before the first pass and until the last one
    with kernels_of(logits_fn).active(), ThreadPoolExecutor(parts, initializer=start_thread) as pool:
        try:
            for item in items:
                running.append(pool.submit(work, item))
                if len(running) > parts:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            cancelled.set()
            for future in running:
                future.cancel()
            torch.set_num_threads(threads)  # for threads that start later


def split_batch(
    logits_fn: Any, device: torch.device, work: Callable[..., TensorsT], *tensors: Tensor | None
) -> TensorsT:
    """work(*tensors), which runs `logits_fn` on `device` for each row of the tensors (B, ...); the first is not None.
    On a CPU, parts of the rows run at once, and their results are joined."""
    rows = len(tensors[0])  # type: ignore[arg-type]
    parts = count_parts(logits_fn, device, rows // MIN_IMAGES)
    if parts == 1:
        return work(*tensors)
    split = (repeat(None, parts) if tensor is None else tensor.chunk(parts) for tensor in tensors)
    return concatenate(list(run_parts(logits_fn, lambda part: work(*part), zip(*split), parts)))


def check_cancelled() -> None:
    """Raises CancelledError in a part whose result nobody waits for."""
    cancelled = getattr(current_part, "cancelled", None)
    if cancelled is not None and cancelled.is_set():
        raise CancelledError
