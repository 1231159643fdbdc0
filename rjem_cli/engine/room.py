"""Work that goes on in smaller batches where memory is too small for those that were asked for."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from rjem_cli.engine.quiet import unheard
from rjem_cli.errors import is_out_of_memory

TensorsT = TypeVar("TensorsT", bound=tuple[Tensor | None, ...])
FoundT = TypeVar("FoundT")


@dataclass
class Room:
    """For batches of `asked` rows; `most` fit into memory at once, as far as was tried. `say` hears when they turn out
    to be fewer than before."""

    asked: int
    say: Callable[[str], None] = unheard
    most: int = field(init=False)

    def __post_init__(self) -> None:
        self.most = self.asked

    def __call__(self, work: Callable[[Tensor], TensorsT], rows: Tensor) -> TensorsT:
        """What `work` gives for `rows` (B, ...), row by row: as one, or put together from parts. Raises the error of
        memory that is too small for one row."""
        found: list[TensorsT] = []
        done = 0
        while done < len(rows) or not found:
            part = rows[done : done + self.most]
            try:
                found.append(work(part))
                done += len(part)
            except (RuntimeError, MemoryError) as error:
                self.halve(len(part), error)
            else:
                continue
            self.recover(len(part))  # outside of the handler, whose error holds the tensors of the failed attempt
        return found[0] if len(found) == 1 else put_together(found)

    def at_once(self, work: Callable[[int], FoundT]) -> FoundT:
        """What `work` gives for as many rows at once as there is room for; it is called anew with fewer.
        Raises the error of memory that is too small for one row."""
        while True:
            tried = self.most
            try:
                return work(tried)
            except (RuntimeError, MemoryError) as error:
                self.halve(tried, error)
            self.recover(tried)

    def halve(self, tried: int, error: Exception) -> None:
        """Raises `error` where fewer rows are no remedy."""
        if tried < 2 or not is_out_of_memory(error):
            raise error
        self.most = tried // 2

    def recover(self, tried: int) -> None:
        free_memory()
        self.say(f"memory is too small for {tried} images at once; goes on with {self.most}")


def put_together(parts: list[TensorsT]) -> TensorsT:
    """Along the rows; None where the parts have none."""
    whole = [None if column[0] is None else torch.cat(column) for column in zip(*parts)]
    kind: Any = type(parts[0])
    return kind(*whole) if hasattr(kind, "_fields") else kind(whole)  # type: ignore[no-any-return]


def free_memory() -> None:
    """What an attempt that failed has left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
