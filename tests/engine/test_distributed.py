"""The laws of work that two processes share: what is cut and put together is what it was, an error of one is an error
of all and said once, and statistics of halves are those of the whole."""

from __future__ import annotations

import functools
import itertools
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from subprocess import PIPE, STDOUT

import pytest
import torch

from rjem_cli.engine.distributed import SINGLE, Distributed, joined
from rjem_cli.engine.models.prior import ClassGaussianPrior
from rjem_cli.engine.models.shared_norm import share_statistics
from rjem_cli.engine.training.replay_buffer import ReplayBuffer
from rjem_cli.errors import DataError, InterruptedRunError

WORLD = 2
PRIOR = ClassGaussianPrior(torch.zeros(3, 4), tuple(torch.eye(4) for _ in range(3)), (1, 2, 2))
LAWS: list[Callable[[Distributed], None]] = []


def law(check: Callable[[Distributed], None]) -> Callable[[Distributed], None]:
    LAWS.append(check)
    return check


@law
def rows_put_together_are_the_whole(ranks: Distributed) -> None:
    for count in (0, 1, 2, 7, 64):
        x = torch.rand(count, 3, generator=torch.Generator().manual_seed(count))
        assert torch.equal(ranks.whole(ranks.rows(x), count), x)


@law
def what_is_spread_comes_in_order_to_all(ranks: Distributed) -> None:
    done: list[int] = []

    def double(item: int) -> tuple[torch.Tensor, torch.Tensor]:
        done.append(item)
        return torch.tensor(2 * item), torch.tensor(item)

    for count in (0, 1, 5, 6):
        done.clear()
        assert [(int(a), int(b)) for a, b in ranks.spread(double, range(count))] == [(2 * i, i) for i in range(count)]
        assert done == list(range(ranks.rank, count, WORLD))


def fails(ranks: Distributed, error: Exception, rank: int) -> bool:
    if ranks.rank == rank:
        raise error
    return True


def raised(call: Callable[[], object]) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@law
def an_error_of_one_is_raised_by_all_and_told_by_the_first(ranks: Distributed) -> None:
    errors = DataError("a file"), InterruptedRunError("stopped", 15), KeyError("a bug")
    for rank, error in itertools.product(range(WORLD), errors):
        work = functools.partial(fails, ranks, error, rank)
        calls: list[Callable[[], object]] = [
            functools.partial(ranks.jointly, work),
            functools.partial(ranks.in_turn, work),
            ranks.followed(work),
            lambda work=work: list(ranks.spread(lambda item: work(), range(4))),
        ]
        for found in map(raised, calls):
            assert (type(found), str(found)) == (type(error), str(error)), (rank, found, error)
            assert found.told == (not ranks.is_first)  # type: ignore[attr-defined]
            assert (found is error) == (ranks.rank == rank)
            assert "in fails" in "".join(traceback.format_exception(found))


@law
def an_error_that_cannot_travel_goes_on_in_words(ranks: Distributed) -> None:
    class Local(Exception):
        """Known to this function alone."""

    found = raised(lambda: ranks.jointly(lambda: fails(ranks, Local("so it went"), 1)))
    assert "so it went" in str(found)


@law
def the_first_decides_and_goes_before(ranks: Distributed) -> None:
    assert ranks.from_first(lambda: ranks.rank) == 0
    assert "not here" in str(raised(lambda: ranks.from_first(lambda: fails(ranks, DataError("not here"), 0))))
    assert ranks.in_turn(lambda: ranks.rank) == ranks.rank
    assert ranks.differing("alike") == [] and ranks.differing(ranks.rank) == ["0", "1"]
    assert ranks.agree(ranks.rank == 1) and not ranks.agree(False)


@law
def a_buffer_in_parts_is_the_buffer(ranks: Distributed) -> None:
    def drawn(others: Distributed) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        buffer = ReplayBuffer.from_prior(PRIOR, 21, 0.3, generator, others)
        found = []
        for _ in range(3):
            starts, held = buffer.draw(8, generator)
            found.append(starts.clone())
            buffer.store(held, starts + 1)
        buffer.redraw(0.5, generator)
        return torch.cat(found), buffer.images

    for part, whole in zip(drawn(ranks), drawn(SINGLE)):
        assert torch.equal(part, whole)


@law
def statistics_of_halves_are_those_of_the_whole(ranks: Distributed) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weights = (torch.randn(6, 3, 4, 4, generator=generator) for _ in range(2))
    scale = torch.rand(3, generator=generator)

    def passed(others: Distributed) -> list[torch.Tensor]:
        """(y, dL/dx, dL/dweight, dL/dbias, running mean, running variance), of all images."""
        norm = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
        norm.load_state_dict({**norm.state_dict(), "0.weight": scale})
        if others.world > 1:
            share_statistics(norm)
        part = others.rows(x).clone().requires_grad_()
        y = norm(part)
        (y.square() * others.rows(weights)).sum().backward()
        gradients = [others.sum(parameter.grad) for parameter in norm.parameters()]
        rows = [others.whole(found, len(x)) for found in (y.detach(), part.grad)]
        return [*rows, *gradients, *(buffer for buffer in norm.buffers() if buffer.is_floating_point())]

    for halves, whole in zip(passed(ranks), passed(SINGLE), strict=True):
        torch.testing.assert_close(halves, whole, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def outcomes():
    """law -> what both processes printed of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": WORLD, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = []
    for rank in range(WORLD):
        place = {**job, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": 1, "CUDA_VISIBLE_DEVICES": ""}
        environment = {**os.environ, **{name: str(value) for name, value in place.items()}}
        command = [sys.executable, __file__]
        processes.append(subprocess.Popen(command, stdout=PIPE, stderr=STDOUT, text=True, env=environment))
    return [process.communicate(timeout=300)[0] for process in processes]


@pytest.mark.parametrize("name", [check.__name__ for check in LAWS])
def test_two_processes_share(outcomes, name):
    for told in outcomes:
        assert f"{name}: holds" in told, told


if __name__ == "__main__":
    with joined() as those:
        for check in LAWS:
            check(those)
            print(f"{check.__name__}: holds", flush=True)
