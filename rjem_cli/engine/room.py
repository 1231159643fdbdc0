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
                if len(part) < 2 or not is_out_of_memory(error):
                    raise
                self.most = len(part) // 2
                reason = f"memory is too small for {len(part)} images at once"
            else:
                continue
            free_memory()  # outside of the handler, whose error holds the tensors of the failed attempt
            self.say(f"{reason}; goes on with {self.most}")
        return found[0] if len(found) == 1 else put_together(found)


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
