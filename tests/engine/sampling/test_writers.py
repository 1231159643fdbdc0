"""Batches are written in order in the background, few of them wait, and nothing is written after a failure."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from rjem_cli.engine.sampling.generate import SampleBatch
from rjem_cli.engine.sampling.writers import QUEUE, write_in_background


class SlowWriter:
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


def make_batches(count, written_before, writer=None):
    """Batches of 10 samples. `written_before` gets how many were written when each was made."""
    for index in range(count):
        written_before.append(len(writer.written) if writer else 0)
        yield SampleBatch(10 * index, torch.zeros(10, 1, 2, 2))


def test_batches_are_written_in_order_by_one_other_thread_with_a_bounded_queue():
    writer, written_before = SlowWriter(), []
    progress = list(write_in_background(make_batches(30, written_before, writer), writer))
    assert progress == sorted(progress) and progress[-1] == 300 and len(progress) == 31
    assert writer.written == list(range(0, 300, 10))
    assert len(writer.threads) == 1 and threading.get_ident() not in writer.threads
    waiting = [index - written for index, written in enumerate(written_before)]
    assert 2 <= max(waiting) <= QUEUE + 1  # the chains run ahead, but memory does not grow


def test_a_failure_of_the_writer_is_raised_and_nothing_is_written_after_it():
    writer, written_before = SlowWriter(fails_at=50), []
    with pytest.raises(OSError, match="full"):
        list(write_in_background(make_batches(30, written_before), writer))
    assert writer.written == [0, 10, 20, 30, 40] and len(written_before) <= 6 + QUEUE + 1


def test_the_batches_before_a_failure_of_the_chains_are_written():
    def fail_after_three():
        yield from make_batches(3, [])
        raise RuntimeError("chains")

    writer = SlowWriter()
    with pytest.raises(RuntimeError, match="chains"):
        list(write_in_background(fail_after_three(), writer))
    assert writer.written == [0, 10, 20]


def test_a_stop_writes_the_batch_that_was_being_made_and_no_other():
    writer, written_before = SlowWriter(), []
    batches = make_batches(30, written_before)
    assert list(write_in_background(batches, writer, lambda: len(written_before) == 3))[-1] == 30
    assert writer.written == [0, 10, 20] and len(written_before) == 3
