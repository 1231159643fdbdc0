"""Several processes, as torchrun starts them, give what one gives; where one of them is lost, one line says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch

from rjem_cli.paths import checkpoints_in
from tests.conftest import TINY_FLAGS
from tests.run_results import metrics_of

pytestmark = pytest.mark.slow
PROCESSES = 2
LIMIT = 300  # seconds that a busy machine may take


def started(*arguments):
    """rjem under torchrun; its home is this process's."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}", "-m", "--"]
    command = [sys.executable, *launcher, "rjem_cli"]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process):
    """(its code, stdout, lines of stderr that rjem wrote as errors)."""
    out, err = process.communicate(timeout=LIMIT)
    return process.returncode, out, [line for line in err.splitlines() if line.startswith("rjem: ")]


def together(*arguments):
    """What the first of them writes to stdout, and to stderr."""
    process = started(*arguments)
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    return out, err


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".png", ".csv")}


def largest_change(before, after):
    """Of any weight, between two checkpoints."""
    tensors, others = (safetensors.torch.load_file(path) for path in (before, after))
    assert tensors.keys() == others.keys()
    return max((tensor - others[name]).abs().max().item() for name, tensor in tensors.items())


@pytest.mark.parametrize(("norm", "statistics"), [("batch", "joint"), ("group", "separate")])
def test_a_run_of_two_has_the_weights_of_one(rjem, own_home, norm, statistics):
    """With the same joint batch, by SGD: Adam makes whole steps of the rounding in a bias before BatchNorm. To 1e-5,
    unless a last bit turns the sign of an attack's step or the kink of an activation: the two runs then part, as one
    does from itself with another number of threads. No seed agrees by chance, so one that agrees is enough."""

    def runs_of(seed):
        flags = (*TINY_FLAGS, "--steps", 5, "--optimizer", "sgd", "--lr", 0.02, "--noise-std", 0.01, "--seed", seed)
        flags = (*flags, "--norm-layer", norm, "--bn-statistics", statistics, "--checkpoint-minutes", 1e-3)
        names = f"one-{seed}", f"two-{seed}"
        assert rjem("train", "--run", names[0], *flags).code == 0
        together("train", "--run", names[1], *flags)
        return [own_home / "runs" / name for name in names]

    differences = []
    for one, two in map(runs_of, range(4)):
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


def test_samples_and_scores_of_two_are_those_of_one(rjem, own_home, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert rjem("train", "--run", "judge", *TINY_FLAGS, "--seed", 1).code == 0
    judge = checkpoints_in(own_home / "runs" / "judge")[-1]
    calls = {
        "samples": ("generate", "tiny", "-n", 250, "--block-size", 40, "-o"),
        "attacked": ("attack", "tiny", "--limit", 100, "--eps", "0.02,0.1", "--steps", 3, "--restarts", 2, "--save"),
    }
    for name, call in calls.items():
        assert rjem(*call, f"{name}-one").code == 0
        together(*call, f"{name}-two")
        assert files_in(tmp_path / f"{name}-one") == files_in(tmp_path / f"{name}-two") != {}
    for call in [
        ("eval", "tiny", "--limit", 100, "--steps", 3, "--batch-size", 30, "--json"),
        ("eval", "./samples-one", "--features", judge, "--allow-few", "--is-splits", 2, "--json"),
    ]:
        one, two = json.loads(rjem(*call).out), json.loads(together(*call)[0])
        scores, others = numbers_in(one), numbers_in(two)
        assert scores.pop("seconds") and others.pop("seconds")
        assert scores == pytest.approx(others, rel=1e-3)  # sums in another order: one thread a process


def test_two_foretell_what_they_would_take_together(own_home, trained):
    for call in [("train", *TINY_FLAGS), ("generate", "tiny", "-n", 200), ("attack", "tiny", "--limit", 100)]:
        _, err = together(*call, "--dry-run")
        assert err.count(" of memory") == 1, err


def numbers_in(line):
    return {name: value for name, value in line.items() if isinstance(value, int | float)}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("train", "--nonsense"), 2, "No such option"),
        (("train", "--run", "odd", *TINY_FLAGS, "--batch-size", 15), 2, "15 images have no 2 equal shares"),
        (("generate", "nobody"), 3, "no run or checkpoint named 'nobody'"),
        (("eval", "-"), 2, "- is read by one process"),
        (("compare", "--published"), 2, "runs in one process"),
        (("generate", "tiny", "--device", "cuda:1"), 2, "each has a GPU of its own"),
    ],
)
def test_what_cannot_be_is_said_once(trained, arguments, code, message):
    _, out, (line,) = ended(started(*arguments))
    assert message in line and out == ""


def ranks_of(launcher):
    return [int(pid) for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()]


def wait_until(condition):
    for _ in range(LIMIT * 10):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come to that")


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the processes that torchrun started in Linux's /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_rank_ends_the_job_with_one_line_and_a_stop_with_its_state(rjem, own_home, rank):
    run = own_home / "runs" / "lost"
    flags = (*TINY_FLAGS, "--steps", 100_000, "--checkpoint-every", 5, "--sample-every", 100_000)
    launcher = started("train", "--run", "lost", *flags)
    wait_until((run / "checkpoints" / "step-00000005.safetensors").exists)
    os.kill(ranks_of(launcher)[rank], signal.SIGKILL)
    code, _, (line,) = ended(launcher)
    assert (
        code == 1 and "the other processes of this job are gone" in line
    )  # whether or not torchrun's signal came first

    kept = checkpoints_in(run)[-1]
    launcher = started("train", "--resume", "lost")
    wait_until(lambda: checkpoints_in(run)[-1] > kept)
    launcher.send_signal(signal.SIGTERM)
    _, _, (line,) = ended(launcher)
    stopped = checkpoints_in(run)[-1]
    assert f"stopped at step {int(stopped.name[5:13])} of 100000" in line and stopped > kept
    assert rjem("train", "--resume", "lost", "--steps", int(stopped.name[5:13]) + 1).code == 0
