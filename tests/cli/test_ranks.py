"""Training under torchrun: several processes give the weights of one, and an error is printed once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch

from rjem_cli.paths import checkpoints_in, parse_step
from tests.conftest import TINY_FLAGS
from tests.run_results import metrics_of

pytestmark = pytest.mark.slow
PROCESSES = 2
LIMIT = 300  # seconds that a busy machine may take


def start(*arguments):
    """rjem under torchrun, with the home of this process."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}", "-m", "--"]
    command = [sys.executable, *launcher, "rjem_cli", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait(process):
    """(exit code, stdout, rjem's lines of errors)."""
    out, err = process.communicate(timeout=LIMIT)
    return process.returncode, out, [line for line in err.splitlines() if line.startswith("rjem: ")]


def run(*arguments):
    """stdout and stderr of a command that succeeds."""
    process = start(*arguments)
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    return out, err


def largest_change(before, after):
    """Of any weight, between two checkpoints."""
    tensors, others = (safetensors.torch.load_file(path) for path in (before, after))
    assert tensors.keys() == others.keys()
    return max((tensor - others[name]).abs().max().item() for name, tensor in tensors.items())


@pytest.mark.parametrize(("norm", "statistics"), [("group", "joint"), ("none", "separate")])
def test_two_processes_train_the_weights_of_one(rjem, own_home, norm, statistics):
    """To 1e-5, unless a last bit changes the sign of an attack's step or of an activation. Then the two runs part, as a
    run does from itself with another number of threads. So one seed of four that agrees is enough."""

    def train_both(seed):
        flags = (*TINY_FLAGS, "--steps", 5, "--optimizer", "sgd", "--lr", 0.02, "--noise-std", 0.01, "--seed", seed)
        flags = (*flags, "--norm-layer", norm, "--bn-statistics", statistics, "--checkpoint-minutes", 1e-3)
        names = f"one-{seed}", f"two-{seed}"
        assert rjem("train", "--run", names[0], *flags).code == 0
        run("train", "--run", names[1], *flags)
        return [own_home / "runs" / name for name in names]

    differences = []
    for one, two in map(train_both, range(4)):
        (first, *_, last), (*_, other) = checkpoints_in(one), checkpoints_in(two)
        assert last.name == other.name
        assert largest_change(first, last) > 1e-3
        differences.append(largest_change(last, other))
        if differences[-1] <= 1e-5:
            break
    else:
        raise AssertionError(differences)
    for line, other in zip(metrics_of(one), metrics_of(two), strict=True):
        assert numbers_in(line) == pytest.approx(numbers_in(other), rel=1e-3, abs=1e-4)


def test_an_estimate_is_printed_once(own_home):
    _, err = run("train", *TINY_FLAGS, "--norm-layer", "group", "--dry-run")
    assert err.count(" of memory") == 1, err


def numbers_in(line):
    return {name: value for name, value in line.items() if isinstance(value, int | float)}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("train", "--nonsense"), 2, "No such option"),
        (("train", "--norm-layer", "group", *TINY_FLAGS, "--batch-size", 15), 2, "15 is not divisible by 2 processes"),
        (("train", "--norm-layer", "batch", *TINY_FLAGS), 2, "--norm-layer batch with several processes needs CUDA"),
        (("generate", "nobody"), 3, "no run or checkpoint named 'nobody'"),
        (("eval", "-"), 2, "runs in one process"),
        (("compare", "--published"), 2, "runs in one process"),
    ],
)
def test_an_error_of_all_processes_is_printed_once(own_home, arguments, code, message):
    exit_code, out, (line,) = wait(start(*arguments))
    assert exit_code and message in line and out == ""


def ranks_of(launcher):
    return [int(pid) for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()]


def wait_until(condition):
    for _ in range(LIMIT * 10):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("timeout")


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the processes that torchrun started in Linux's /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_process_ends_the_run_with_one_line_and_a_signal_saves(rjem, own_home, rank):
    run_dir = own_home / "runs" / "lost"
    flags = (
        *TINY_FLAGS,
        "--norm-layer",
        "group",
        "--steps",
        100_000,
        "--checkpoint-every",
        5,
        "--sample-every",
        100_000,
    )
    launcher = start("train", "--run", "lost", *flags)
    wait_until((run_dir / "checkpoints" / "step-00000005.safetensors").exists)
    os.kill(ranks_of(launcher)[rank], signal.SIGKILL)
    code, _, lines = wait(launcher)
    assert code == 1
    assert all(
        "another process of this run has ended or does not answer; resume the run with --resume" in line
        for line in lines
    )
    assert len(lines) == (rank == 1)  # only the main process reports

    newest = checkpoints_in(run_dir)[-1]
    launcher = start("train", "--resume", "lost")
    wait_until(lambda: checkpoints_in(run_dir)[-1] > newest)
    launcher.send_signal(signal.SIGTERM)
    _, _, (line,) = wait(launcher)
    stopped = checkpoints_in(run_dir)[-1]
    assert f"stopped at step {parse_step(stopped)} of 100000" in line and stopped > newest
    assert rjem("train", "--resume", "lost", "--steps", parse_step(stopped) + 1).code == 0
