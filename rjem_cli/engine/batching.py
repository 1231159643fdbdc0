"""Batches that are halved when they do not fit into memory."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from rjem_cli.engine.callbacks import Log, noop
from rjem_cli.errors import is_out_of_memory

TensorsT = TypeVar("TensorsT", bound=tuple[Tensor | None, ...])
ResultT = TypeVar("ResultT")


@dataclass
class BatchSizer:
    """Runs work in batches, halving the batch size after an out-of-memory error and logging it."""

    batch_size: int
    log: Log = noop
    max_batch_size: int = field(init=False)  # the largest that is not known to fail

    def __post_init__(self) -> None:
        self.max_batch_size = self.batch_size

    def run(self, work: Callable[[Tensor], TensorsT], rows: Tensor) -> TensorsT:
        """The tensors that `work` returns for the batches of `rows` (N, ...), concatenated. Raises the out-of-memory
        error if one row does not fit."""
        results: list[TensorsT] = []
        done = 0
        while done < len(rows) or not results:
            batch = rows[done : done + self.max_batch_size]
            try:
                results.append(work(batch))
            except (RuntimeError, MemoryError) as error:
                self.halve(len(batch), error)
            else:
                done += len(batch)
                continue
            self.recover(len(batch))  # outside the handler, because the error holds the tensors of the failed batch
        return results[0] if len(results) == 1 else concatenate(results)

    def run_largest(self, work: Callable[[int], ResultT]) -> ResultT:
        """The result of `work` for the largest batch size that fits. Raises the out-of-memory error if one row does not
        fit."""
        while True:
            batch_size = self.max_batch_size
            try:
                return work(batch_size)
            except (RuntimeError, MemoryError) as error:
                self.halve(batch_size, error)
            self.recover(batch_size)

    def halve(self, tried: int, error: Exception) -> None:
        """Halve the batch size. Raises `error` if a smaller batch would not help."""
        if tried < 2 or not is_out_of_memory(error):
            raise error
        self.max_batch_size = tried // 2

    def recover(self, tried: int) -> None:
        """Free the memory of the failed batch, and log."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.log(f"not enough memory for {tried} images at once; continuing with {self.max_batch_size}")


def concatenate(parts: list[TensorsT]) -> TensorsT:
    """Tuples of tensors, concatenated along the rows; None where the parts have None."""
    columns = [None if column[0] is None else torch.cat(column) for column in zip(*parts)]
    kind: Any = type(parts[0])
    return kind(*columns) if hasattr(kind, "_fields") else kind(columns)  # type: ignore[no-any-return]
