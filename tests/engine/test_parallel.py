"""Blocks run side by side on a CPU. Results come in order, and work ends when nobody waits for it."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from functools import partial

import pytest
import torch

from rjem_cli.engine import memory, timing
from rjem_cli.engine.gradients import gradient_step, run_step
from rjem_cli.engine.kernels import Kernels
from rjem_cli.engine.models.energy import energy
from rjem_cli.engine.models.frozen import FrozenLogits
from rjem_cli.engine.networks.wide_resnet import WideResNet
from rjem_cli.engine.parallel import MAX_PARALLEL, parallel_limit, run_in_parallel
from rjem_cli.engine.timing import find_parallel

CPU = torch.device("cpu")
SHAPE = (1, 8, 8)


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def frozen():
    torch.manual_seed(0)
    return FrozenLogits(WideResNet(1, num_classes=10, depth=10, width=1, norm="none"))


def run_forever(logits_fn):
    while True:
        run_step(partial(gradient_step, objective=energy), logits_fn, torch.zeros(1, *SHAPE))


@pytest.mark.parametrize("parallel", [1, 2, 4])
def test_results_come_in_the_order_of_the_items(parallel, frozen, four_threads):
    release = threading.Event()

    def work(item):
        if parallel > 1 and item == 0:
            assert release.wait(10)  # a later item is done before the first
        release.set()
        return 10 * item

    assert list(run_in_parallel(frozen, work, range(7), parallel)) == [0, 10, 20, 30, 40, 50, 60]


def test_only_a_few_items_are_begun_ahead_of_the_caller(frozen, four_threads):
    begun = []
    results = run_in_parallel(frozen, lambda item: begun.append(item), range(100), 2)
    next(results)
    results.close()
    assert len(begun) <= 3


def test_blocks_share_the_threads_and_give_them_back(frozen, four_threads):
    def count_threads(item):
        return torch.get_num_threads()

    assert list(run_in_parallel(frozen, count_threads, range(4), 2)) == [2] * 4
    seen = [torch.get_num_threads()]
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == [4, 4]


def test_an_error_ends_the_work_beside_it(frozen, four_threads):
    begun, ended = threading.Event(), threading.Event()

    def work(item):
        if item == 0:
            assert begun.wait(10)
            raise MemoryError("out of memory")
        begun.set()
        try:
            run_forever(frozen)
        except CancelledError:
            ended.set()
            raise

    with pytest.raises(MemoryError):
        list(run_in_parallel(frozen, work, range(2), 2))
    assert ended.is_set()


def test_work_ends_when_the_caller_stops(frozen, four_threads):
    """As after a second signal: nothing may run on while the process ends."""
    results = run_in_parallel(frozen, lambda item: run_forever(frozen) if item else item, range(3), 2)
    assert next(results) == 0
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


def test_the_user_s_switches_are_restored_whichever_pass_ends_last(frozen, four_threads):
    network = FrozenLogits(WideResNet(1, num_classes=10, depth=10, width=1, norm="none"), kernels=Kernels(tf32=True))
    torch.backends.cudnn.benchmark = True
    try:
        work = partial(gradient_step, network, objective=energy)
        list(run_in_parallel(network, lambda count: work(torch.zeros(count, *SHAPE)), [1, 9] * 20, 3))
        assert torch.backends.cudnn.benchmark and torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.backends.cudnn.benchmark = False


def test_only_our_networks_run_in_parallel_and_on_threads_of_a_cpu(frozen, four_threads):
    assert parallel_limit(frozen, CPU, 100) == MAX_PARALLEL and parallel_limit(frozen, CPU, 3) == 3
    assert parallel_limit(frozen, CPU, 0) == 1
    assert parallel_limit(frozen, torch.device("cuda"), 100) == 1
    assert parallel_limit(lambda x: x, CPU, 100) == 1
    assert parallel_limit(FrozenLogits(torch.nn.Flatten()), CPU, 100) == 1  # a user's network may keep state
    torch.set_num_threads(1)
    assert parallel_limit(frozen, CPU, 100) == 1


def test_as_many_batches_at_once_as_take_half_of_the_memory(frozen, four_threads, monkeypatch):
    monkeypatch.setattr(timing, "peak_bytes", lambda device: 1_000)
    for available, parallel in ((100_000, 4), (6_500, 3), (1_500, 1), (None, 1)):
        monkeypatch.setattr(timing, "memory_limit", lambda available=available: available)
        assert find_parallel(frozen, SHAPE, 2, 10, CPU) == parallel


def test_one_batch_at_a_time_where_the_process_may_not_use_more(frozen, four_threads, monkeypatch):
    plain = FrozenLogits.__call__

    def limited(self, x):
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError("out of memory")
        return plain(self, x)

    monkeypatch.setattr(FrozenLogits, "__call__", limited)
    assert find_parallel(frozen, SHAPE, 2, 10, CPU) == 1


@pytest.mark.parametrize(("content", "limited"), [("1000000\n", True), ("max\n", False), (None, False)])
def test_the_memory_limit_is_that_of_the_container(content, limited, monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CONTAINER_LIMIT", limit)
    if content is not None:
        limit.write_text(content)
    found = memory.memory_limit()
    assert (found == 1_000_000) is limited and found is not None and found > 0
