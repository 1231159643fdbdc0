"""Batches are written in order beside the chains, a few may wait, and nothing is written behind a failure."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from rjem_cli.engine.sampling.generate import SampleBatch
from rjem_cli.engine.sampling.writers.writer import QUEUE, write_beside


class Slow:
    def __init__(self, fails_at: int | None = None):
        self.written: list[int] = []
        self.fails_at = fails_at
        self.threads: set[int] = set()

    @property
    def done(self) -> int:
        return 10 * len(self.written)

    def write(self, batch: SampleBatch) -> None:
        time.sleep(0.005)
        self.threads.add(threading.get_ident())
        if batch.first == self.fails_at:
            raise OSError("full")
        self.written.append(batch.first)

    def finish(self) -> None: ...

    def close(self) -> None: ...


def batches(count, drawn, writer=None):
    for index in range(count):
        drawn.append(len(writer.written) if writer else 0)
        yield SampleBatch(10 * index, torch.zeros(10, 1, 2, 2))


def test_in_order_on_one_other_thread_with_a_bounded_queue():
    writer, drawn = Slow(), []
    told = list(write_beside(batches(30, drawn, writer), writer))
    assert told == sorted(told) and told[-1] == 300 and len(told) == 31
    assert writer.written == list(range(0, 300, 10))
    assert len(writer.threads) == 1 and threading.get_ident() not in writer.threads
    waiting = [index - written for index, written in enumerate(drawn)]
    assert 2 <= max(waiting) <= QUEUE + 1  # the chains ran ahead, but not far: memory does not grow


def test_a_failure_of_the_writer_is_raised_and_nothing_is_written_behind_it():
    writer, drawn = Slow(fails_at=50), []
    with pytest.raises(OSError, match="full"):
        list(write_beside(batches(30, drawn), writer))
    assert writer.written == [0, 10, 20, 30, 40] and len(drawn) <= 6 + QUEUE + 1


def test_before_a_failure_of_the_chains_what_they_made_is_written():
    def dies():
        yield from batches(3, [])
        raise RuntimeError("chains")

    writer = Slow()
    with pytest.raises(RuntimeError, match="chains"):
        list(write_beside(dies(), writer))
    assert writer.written == [0, 10, 20]
