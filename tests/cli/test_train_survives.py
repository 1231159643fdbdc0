"""Real processes: kill -9, a full disk, a folder that cannot be written, two runs at once."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rjem_cli.paths import checkpoints_in, parse_step
from tests.conftest import TINY_FLAGS
from tests.run_results import result_digests

pytestmark = pytest.mark.slow
FLAGS = [*TINY_FLAGS, "--steps", "200", "--checkpoint-every", "5", "--sample-every", "20"]
TRAIN = [sys.executable, "-m", "rjem_cli", "train", "-q"]


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "RJEM_HOME": str(home)}


def train(home: Path, *flags: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TRAIN, *flags], env=environment(home), capture_output=True, text=True, timeout=120, **options
    )


def test_a_run_killed_at_random_moments_ends_like_one_that_was_not(tmp_path):
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    assert train(uninterrupted, "--run", "run", *FLAGS).returncode == 0
    draws = random.Random(0)
    for _ in range(3):
        flags = ["--resume", "run"] if checkpoints_in(killed / "runs/run") else ["--run", "run", *FLAGS]
        known = checkpoints_in(killed / "runs/run")
        process = subprocess.Popen([*TRAIN, *flags], env=environment(killed), stderr=subprocess.DEVNULL)
        until(lambda: process.poll() is not None or checkpoints_in(killed / "runs/run")[-1:] != known[-1:])  # noqa: B023
        time.sleep(draws.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL  # else it had ended already, and nothing was tested
    assert train(killed, "--resume", "run").returncode == 0
    assert result_digests(killed / "runs/run") == result_digests(uninterrupted / "runs/run")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def small_files(limit: int):
    """A preexec_fn: the process cannot write files larger than `limit` bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def test_where_no_checkpoint_fits_nothing_is_trained(tmp_path):
    done = train(tmp_path, "--run", "run", *FLAGS, preexec_fn=small_files(100_000))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1 and "step-00000000" in done.stderr and "File too large" in done.stderr
    assert not [path for path in tmp_path.rglob("*.safetensors*") if path.suffix != ".lock"]


def test_a_disk_that_fills_up_keeps_the_valid_checkpoint(tmp_path):
    assert train(tmp_path, "--run", "run", *FLAGS).returncode == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors") if "priors" not in path.parts}
    done = train(tmp_path, "--resume", "run", "--steps", "201", preexec_fn=small_files(100_000))
    warning, error = done.stderr.splitlines()
    assert done.returncode == 1 and error.startswith("rjem: cannot write") and "File too large" in error
    assert warning.startswith("warning: cannot write") and "curves.png" in warning
    assert "the newest checkpoint is that of step 200" in done.stderr
    assert {path: path.read_bytes() for path in before} == before
    assert train(tmp_path, "--resume", "run", "--steps", "201").returncode == 0


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "runs/run").mkdir(parents=True)
    (tmp_path / "runs/run/checkpoints").write_text("a file where a folder should be: root may write anywhere else")
    done = train(tmp_path, "--run", "run", *FLAGS)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "runs/run/checkpoints" in done.stderr


def test_two_trainings_in_one_folder(tmp_path):
    assert train(tmp_path, "--run", "run", *FLAGS).returncode == 0
    command = [*TRAIN, "--resume", "run", "--steps", "100000"]
    with subprocess.Popen(command, env=environment(tmp_path), stderr=subprocess.DEVNULL) as first:
        until(lambda: first.poll() is not None or parse_step(checkpoints_in(tmp_path / "runs/run")[-1]) > 200)
        second = train(tmp_path, "--resume", "run", "--steps", "100000")
        assert second.returncode == 1 and "in use by another process" in second.stderr
        assert second.stderr.count("\n") == 1 and first.poll() is None
        first.send_signal(signal.SIGTERM)
    assert first.returncode == 143
    assert train(tmp_path, "--resume", "run", "--steps", "202", "--dry-run").returncode == 0


def test_files_follow_the_umask(tmp_path):
    done = train(tmp_path, "--run", "run", *TINY_FLAGS, preexec_fn=lambda: os.umask(0o027))
    assert done.returncode == 0
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert modes <= {0o640}
