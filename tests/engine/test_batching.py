"""Where memory is too small for a batch its parts give the same, and only then."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
import torch

from rjem_cli.engine.batching import BatchSizer


class Pair(NamedTuple):
    double: torch.Tensor
    nothing: torch.Tensor | None


def fits(most, error=torch.OutOfMemoryError("CUDA out of memory")):
    """Work on at most so many rows."""
    sizes = []

    def work(rows):
        sizes.append(len(rows))
        if len(rows) > most:
            raise error
        return Pair(2 * rows, None)

    return work, sizes


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes. Error code 12"),
]


def test_rows_are_what_they_are_in_one_batch(monkeypatch):
    monkeypatch.setattr(batches, "free_memory", lambda: None)  # a collection of all garbage takes longer than all else
    for count, most, error in itertools.product([0, 1, 6, 20], [1, 2, 3, 7, 20], ERRORS):
        said = []
        work, _ = fits(most, error)
        rows = torch.arange(count)
        found = BatchSizer(20, said.append)(work, rows)
        assert isinstance(found, Pair) and torch.equal(found.double, 2 * rows) and found.nothing is None
        assert bool(said) == (count > most)


def test_what_was_learned_is_kept_and_said_once():
    said = []
    work, sizes = fits(5)
    batches = BatchSizer(16, said.append)
    batches.run(work, torch.arange(16))
    assert sizes == [16, 8, 4, 4, 4, 4] and said[-1] == "memory is too small for 8 images at once; goes on with 4"
    sizes.clear()
    batches.run(work, torch.arange(8))
    assert sizes == [4, 4] and len(said) == 2 and batches.batch_size == 16


def test_a_row_that_does_not_fit_and_other_errors_are_raised():
    with pytest.raises(torch.OutOfMemoryError):
        BatchSizer(4)(fits(0)[0], torch.arange(4))
    work, sizes = fits(2, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        BatchSizer(4)(work, torch.arange(4))
    assert sizes == [4]
