"""The processes of one job, as torchrun starts them: which one this is, and what they do together. A process on its own
is rank 0 of 1, and nothing is sent."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

from rjem_cli.errors import ConfigError, LostRanksError

if TYPE_CHECKING:
    from torch import Tensor

PATIENCE = timedelta(hours=6)  # of one rank for the others: the first alone writes, and measures what a run ends with

S = TypeVar("S")
T = TypeVar("T")
WatchT = TypeVar("WatchT", bound=Callable[..., None])


class Outcome(NamedTuple):
    """What a rank's work gave, or how it failed."""

    value: Any = None
    error: Exception | None = None


@dataclass(frozen=True)
class Ranks:
    """All that they do together raises LostRanksError where one of them is gone."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """The one that writes files and talks."""
        return self.rank == 0

    def check_batch(self, batch_size: int) -> None:
        """Raises ConfigError for a batch that has no equal shares."""
        if batch_size % self.world:
            raise ConfigError(f"batches of {batch_size} images have no {self.world} equal shares; change --batch-size")

    def share(self, count: int) -> slice:
        """This rank's rows of `count`: in the order of the ranks, as even as can be."""
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def rows(self, x: Tensor) -> Tensor:
        """This rank's share of x, along its first dimension."""
        return x[self.share(len(x))]

    def whole(self, rows: Tensor, count: int) -> Tensor:
        """Every rank's share of `count` rows, put together: the inverse of `rows`."""
        if self.world == 1:
            return rows
        x = rows.new_zeros(count, *rows.shape[1:])
        x[self.share(count)] = rows
        return self.sum(x)

    def sum(self, x: Tensor) -> Tensor:
        """Of all ranks' x, with the same bits on each."""
        if self.world > 1:
            import torch.distributed as dist

            with reaching_others():
                dist.all_reduce(x)
        return x

    def agree(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return any(self.each(flag))

    def differing(self, value: object) -> list[str]:
        """In words, what ranks say where they do not all say the same; else nothing."""
        said = sorted(set(self.each(str(value))))
        return said if len(said) > 1 else []

    def each(self, value: T) -> list[T]:
        """What every rank says, in their order."""
        values = [value] * self.world
        if self.world > 1:
            import torch.distributed as dist

            with reaching_others():
                dist.all_gather_object(values, value)
        return values

    def from_first(self, work: Callable[[], T]) -> T:
        """What the first rank's `work` gives, or the exception that it raises, on every rank; the others wait."""
        if self.world == 1:
            return work()
        outcomes = self.outcomes(self.tried(work) if self.is_first else Outcome())
        return self.unpacked(outcomes[0])  # type: ignore[no-any-return]

    def jointly(self, work: Callable[[], T]) -> T:
        """What this rank's `work` gives; where one rank's raises, every rank raises that."""
        if self.world == 1:
            return work()
        own = self.tried(work)
        for outcome in self.outcomes(Outcome(error=own.error)):
            self.unpacked(outcome)
        return own.value  # type: ignore[no-any-return]

    def followed(self, watch: WatchT) -> WatchT:
        """`watch`, called by all ranks at the same places of their work: where one rank's raises, as after a signal,
        every rank raises that."""
        return lambda *progress: self.jointly(lambda: watch(*progress))  # type: ignore[return-value]

    def in_turn(self, work: Callable[[], T]) -> T:
        """What this rank's `work` gives. The first rank's is over before the others begin, so that what it fetched or
        made is there for them; where one raises, every rank raises that."""
        if self.world == 1:
            return work()
        own = self.tried(work) if self.is_first else Outcome()
        self.unpacked(self.outcomes(Outcome(error=own.error))[0])
        return self.jointly(lambda: own.value if self.is_first else work())

    @contextlib.contextmanager
    def opened_by_first(self, opening: Callable[[], contextlib.AbstractContextManager[T]]) -> Iterator[T | None]:
        """What the first rank opens, until the body ends; None in the others. Every rank raises what opening raises."""
        with contextlib.ExitStack() as held:
            opened: list[T] = []
            self.from_first(lambda: opened.append(held.enter_context(opening())))
            yield opened[0] if opened else None

    def spread(self, work: Callable[[S], T], items: Sequence[S]) -> Iterator[T]:
        """`work` of each item, in their order, on every rank; of each `world` of them a rank does one. It gives a
        tensor, or a tuple of them, which other ranks get on the host. Where one rank's raises, every rank raises
        that."""
        if self.world == 1:
            yield from map(work, items)
            return
        for first in range(0, len(items), self.world):
            own = first + self.rank
            outcome = self.tried(work, items[own]) if own < len(items) else Outcome()
            for found in self.outcomes(on_host(outcome))[: len(items) - first]:
                yield self.unpacked(found)

    def outcomes(self, own: Outcome) -> list[Outcome]:
        """Of all ranks, in their order; a rank's own error stays as it is."""
        found = self.each(own if own.error is None else Outcome(error=self.portable(own.error)))
        if own.error is not None:
            found[self.rank] = own
        return found

    def unpacked(self, outcome: Outcome) -> Any:
        """Its value. Raises its error, which the first rank tells."""
        if outcome.error is not None:
            outcome.error.told = not self.is_first  # type: ignore[attr-defined]
            raise outcome.error
        return outcome.value

    def tried(self, work: Callable[..., Any], *arguments: Any) -> Outcome:
        try:
            return Outcome(work(*arguments))
        except LostRanksError:
            raise
        except Exception as error:
            return Outcome(error=error)

    def portable(self, error: Exception) -> Exception:
        """As other ranks can raise it too; where it is a bug they show its traceback."""
        try:
            copy: Exception = pickle.loads(pickle.dumps(error))
        except Exception:  # whatever its class does when it is made anew: its words go on
            copy = RuntimeError(f"{type(error).__name__}: {error}")
        copy.add_note(f"on rank {self.rank}:\n{''.join(traceback.format_exception(error))}")
        return copy


ALONE = Ranks()


def on_host(value: Any) -> Any:
    if isinstance(value, tuple):
        parts = [on_host(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value.cpu() if hasattr(value, "cpu") else value


def are_started() -> bool:
    """Whether torchrun started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and {"RANK", "LOCAL_RANK", "MASTER_ADDR"} <= os.environ.keys()


def own_rank() -> int:
    """This process's place in its job, before it has joined the others too; 0 where there is no job."""
    return int(os.environ["RANK"]) if are_started() else 0


def end_process(code: int) -> NoReturn:
    """Of one of several, whose work is done: at once. Where Python takes itself down in order, threads of the job's
    connections are still there now and then, and abort the process; torchrun would call that a failure."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or nobody listens
            stream.flush()
    os._exit(code)


@contextlib.contextmanager
def reaching_others() -> Iterator[None]:
    """Raises LostRanksError where that fails."""
    import torch.distributed as dist

    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        lost = LostRanksError("the other processes of this job are gone; call again (train: with --resume)")
        lost.told = own_rank() > 1  # the first may be the one that is lost
        raise lost from None


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """This process among those that torchrun started, on the GPU that is its own where there are some; alone where it
    started none. Raises ConfigError for more processes than GPUs, LostRanksError where the others cannot be reached, or
    are lost on the way."""
    if not are_started():
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    gpus, processes = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if 0 < gpus < processes:
        raise ConfigError(
            f"{processes} processes have {gpus} GPUs here; start as many as GPUs, or hide those: CUDA_VISIBLE_DEVICES="
        )
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        with reaching_others():
            dist.init_process_group("cuda:nccl,cpu:gloo" if gpus else "gloo", timeout=PATIENCE)
            yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
