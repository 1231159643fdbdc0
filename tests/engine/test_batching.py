"""Batches that do not fit into memory are halved, with the same results; other errors are raised."""

from __future__ import annotations

import gc
import itertools
from typing import NamedTuple

import pytest
import torch

from rjem_cli.engine.batching import BatchSizer


class Pair(NamedTuple):
    double: torch.Tensor
    nothing: torch.Tensor | None


def limited_work(max_rows, error=torch.OutOfMemoryError("CUDA out of memory")):
    """(work that raises `error` for more rows, the sizes that it was called with)."""
    sizes = []

    def work(rows):
        sizes.append(len(rows))
        if len(rows) > max_rows:
            raise error
        return Pair(2 * rows, None)

    return work, sizes


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes. Error code 12"),
    RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
    RuntimeError("FIND was unable to find an engine to execute this computation"),
]


def test_halved_batches_have_the_same_result_as_one_batch(monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda: None)  # it takes most of the time of this test
    for count, max_rows, error in itertools.product([0, 1, 6, 20], [1, 2, 3, 7, 20], ERRORS):
        log = []
        work, _ = limited_work(max_rows, error)
        rows = torch.arange(count)
        result = BatchSizer(20, log.append).run(work, rows)
        assert isinstance(result, Pair) and torch.equal(result.double, 2 * rows) and result.nothing is None
        assert bool(log) == (count > max_rows)


def test_the_size_that_fits_is_remembered_and_logged_once():
    log = []
    work, sizes = limited_work(5)
    batches = BatchSizer(16, log.append)
    batches.run(work, torch.arange(16))
    assert sizes == [16, 8, 4, 4, 4, 4] and log[-1] == "not enough memory for 8 images at once; continuing with 4"
    sizes.clear()
    batches.run(work, torch.arange(8))
    assert sizes == [4, 4] and len(log) == 2 and batches.batch_size == 16


def test_the_largest_batch_that_fits_is_found_by_halving():
    tried = []

    def work(size):
        tried.append(size)
        if size > 6:
            raise MemoryError
        return f"ran {size}"

    assert BatchSizer(20).run_largest(work) == "ran 5" and tried == [20, 10, 5]


def test_a_row_that_does_not_fit_and_other_errors_are_raised():
    with pytest.raises(torch.OutOfMemoryError):
        BatchSizer(4).run(limited_work(0)[0], torch.arange(4))
    work, sizes = limited_work(2, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        BatchSizer(4).run(work, torch.arange(4))
    assert sizes == [4]
