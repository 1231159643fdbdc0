"""Two processes: rows that are split and gathered are the whole, decisions are shared, and weights equal those of one
process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE, STDOUT

import pytest
import torch

from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.data.load import load_digit_splits
from rjem_cli.engine.distributed import SINGLE, Distributed, process_group
from rjem_cli.engine.models.prior import fit_prior
from rjem_cli.engine.runtime import start_runtime
from rjem_cli.engine.training.trainer import Trainer

WORLD_SIZE = 2
CONFIG = {"dataset": "digits", "depth": 10, "width": 1, "norm_layer": "group", "batch_size": 16, "buffer_size": 32}
CONFIG |= {"steps": 3, "warmup_steps": 0, "pgd_steps": 2, "sgld_steps": 2, "noise_std": 0.01, "crop_pad": 1, "lr": 0.02}
LAWS: list[Callable[[Distributed], None]] = []


def law(check: Callable[[Distributed], None]) -> Callable[[Distributed], None]:
    LAWS.append(check)
    return check


@law
def gathered_local_rows_are_all_rows(processes: Distributed) -> None:
    for count in (2, 4, 64):
        x = torch.rand(count, 3, generator=torch.Generator().manual_seed(count))
        rows = processes.local_rows(x)
        assert len(rows) == count // WORLD_SIZE and torch.equal(processes.all_gather(rows), x)


@law
def the_main_process_decides(processes: Distributed) -> None:
    assert processes.broadcast(processes.rank) == 0 and processes.is_main == (processes.rank == 0)
    assert processes.broadcast(Path(str(processes.rank))) == Path("0")


@law
def one_process_is_enough_to_stop_all(processes: Distributed) -> None:
    for rank in range(WORLD_SIZE):
        assert processes.any(processes.rank == rank)
    assert not processes.any(False)


@law
def a_mean_has_the_same_bits_in_each_process(processes: Distributed) -> None:
    x = torch.tensor([0.1, 3.0]) * (1 + processes.rank)
    expected = (torch.tensor([0.1, 3.0]) + torch.tensor([0.1, 3.0]) * 2) / 2
    assert torch.equal(processes.mean(x.clone()), expected)


@law
def two_processes_train_the_weights_of_one(processes: Distributed) -> None:
    """To 1e-5, but for the few pixels at which the sign of an attack's step turns on a last bit, and what they move."""
    config = TrainConfig(**CONFIG)
    splits, runtime = load_digit_splits(0.1, shifted=False), start_runtime(config)

    def train(distributed: Distributed) -> list[torch.Tensor]:
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(config, splits, runtime, Path(folder), lambda: fit_prior(splits.train), distributed)
            start = [parameter.detach().clone() for parameter in trainer.model.parameters()]
            for _ in range(config.steps or 0):
                trainer.train_step()
            ends = [parameter.detach() for parameter in trainer.model.parameters()]
        assert max((a - b).abs().max() for a, b in zip(start, ends)) > 1e-3
        assert trainer.buffer is not None
        return [*ends, trainer.buffer.images]

    for two, one in zip(train(processes), train(SINGLE), strict=True):
        difference = (two - one).abs()
        assert difference.max() < 1e-2 and (difference < 1e-5).double().mean() > 0.9, difference


@pytest.fixture(scope="module")
def outputs():
    """What each process printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"WORLD_SIZE": WORLD_SIZE, "LOCAL_WORLD_SIZE": WORLD_SIZE, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = []
    for rank in range(WORLD_SIZE):
        variables = {**job, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": 1, "CUDA_VISIBLE_DEVICES": ""}
        environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
        command = [sys.executable, "-m", "tests.engine.test_distributed"]
        processes.append(subprocess.Popen(command, stdout=PIPE, stderr=STDOUT, text=True, env=environment))
    return [process.communicate(timeout=300)[0] for process in processes]


@pytest.mark.parametrize("name", [check.__name__ for check in LAWS])
def test_two_processes(outputs, name):
    for output in outputs:
        assert f"{name}: holds" in output, output


def test_a_process_of_its_own_needs_no_group():
    x = torch.rand(4)
    assert SINGLE.is_main and torch.equal(SINGLE.all_gather(SINGLE.local_rows(x)), x)
    assert SINGLE.broadcast("value") == "value" and SINGLE.any(True) and not SINGLE.any(False)


if __name__ == "__main__":
    with process_group() as distributed:
        for check in LAWS:
            check(distributed)
            print(f"{check.__name__}: holds", flush=True)
