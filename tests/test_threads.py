"""Commands choose how threads wait, and follow the load, unless the user chose. An import changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from rjem_cli import threads
from rjem_cli.threads import BUSY_SHARE, SPIN_COUNT, core_times, limited_cores, waiting_share, watch_cores

CODE = "import os; {}; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"


def environment_after(code: str, **variables: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", CODE.format(code)]
    return subprocess.run(command, env=inherited | variables, capture_output=True, text=True, check=True).stdout


A_COMMAND = "from rjem_cli.__main__ import main; main(['cache', 'dir'])"


def test_a_command_limits_how_long_threads_spin():
    assert environment_after(A_COMMAND).splitlines()[-1] == f"{SPIN_COUNT} None"


def test_an_empty_variable_is_none():
    assert environment_after(A_COMMAND, OMP_WAIT_POLICY="").splitlines()[-1] == f"{SPIN_COUNT} "


@pytest.mark.parametrize("variables", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_the_user_decides(variables):
    expected = f"{variables.get('GOMP_SPINCOUNT')} {variables.get('OMP_WAIT_POLICY')}"
    assert environment_after(A_COMMAND, **variables).splitlines()[-1] == expected


def test_an_import_changes_nothing():
    assert environment_after("import rjem_cli; rjem_cli.load").splitlines() == ["None None"]


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("50000 100000", 1), ("100000 100000", 1), ("160000 100000", 2), ("max 100000", None), ("6400000 100000", None)],
)
def test_a_container_has_as_many_threads_as_cores(tmp_path, monkeypatch, limit, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    file = tmp_path / "cpu.max"
    file.write_text(limit + "\n")
    assert limited_cores(file) == cores


def test_a_machine_without_limit(tmp_path):
    assert limited_cores(tmp_path / "cpu.max") is None


SPIN_LAW = """
import os, threading, time, torch
from rjem_cli.threads import start_second_team

def core_seconds_of_a_wait():
    torch.zeros(1 << 18).add_(1)
    start = time.process_time()
    time.sleep(0.5)
    return time.process_time() - start

torch.set_num_threads(2)
print(core_seconds_of_a_wait())
end = start_second_team()
time.sleep(0.5)
print(core_seconds_of_a_wait())
end.set()
time.sleep(0.5)
print(core_seconds_of_a_wait())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is PyTorch's OpenMP library on Linux")
@pytest.mark.skipif(len(getattr(os, "sched_getaffinity", lambda _: [0])(0)) < 2, reason="one core: no thread waits")
def test_threads_spin_briefly_while_a_second_team_exists():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", SPIN_LAW]
    environment["GOMP_SPINCOUNT"] = str(10**12)
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    alone, beside_a_team, alone_again = map(float, output.split())
    assert beside_a_team < 0.1 * alone and beside_a_team < 0.1 * alone_again


AN_END = """
import os, sys, time, torch
from rjem_cli.threads import start_second_team

torch.zeros(1 << 18).add_(1)
start_second_team()
time.sleep({})
sys.exit(7)
"""


@pytest.mark.parametrize("seconds", [0, 0.0005, 0.002])
def test_a_team_that_starts_as_python_ends_changes_no_exit_code(seconds):
    for _ in range(3):
        ended = subprocess.run([sys.executable, "-c", AN_END.format(seconds)], capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == (7, "")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "they spin 20000 times (auto: 100 times while other work needs the cores)"),
        ({"GOMP_SPINCOUNT": "20000"}, "GOMP_SPINCOUNT=20000 (requested)"),
        ({"OMP_WAIT_POLICY": "active"}, "OMP_WAIT_POLICY=active (requested)"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is PyTorch's OpenMP library on Linux")
def test_what_is_set_is_described(variables, expected):
    code = f"{A_COMMAND}; from rjem_cli.threads import describe_waiting; print(describe_waiting(), end=' ')"
    assert environment_after(code, **variables).splitlines()[-1].startswith(expected)


def test_the_times_of_all_threads_are_added(tmp_path):
    for task, times in {"7": "100 20 3\n", "8": "5 1 1\n"}.items():
        (tmp_path / task).mkdir()
        (tmp_path / task / "schedstat").write_text(times)
    (tmp_path / "9").mkdir()  # has ended
    assert core_times(tmp_path) == (105, 21)
    assert core_times(tmp_path / "none") == (0, 0)


@pytest.mark.parametrize(
    ("before", "now", "share"),
    [((0, 0), (75, 25), 0.25), ((9, 9), (9, 9), 0.0), ((90, 9), (50, 10), 1.0), ((5, 90), (50, 10), 0.0)],
)
def test_the_share_of_waiting(before, now, share):
    assert waiting_share(before, now) == share


def test_a_second_team_lives_while_the_machine_is_busy(monkeypatch):
    """Other work comes, stays, goes, and comes again."""
    shares = iter([0.0, BUSY_SHARE + 0.1, 0.1, 0.0, 0.9])
    teams: list[threading.Event] = []
    running = []

    def start_team() -> threading.Event:
        teams.append(threading.Event())
        return teams[-1]

    def look_at_teams(_seconds: float) -> None:
        running.append([not end.is_set() for end in teams])

    monkeypatch.setattr(threads, "start_second_team", start_team)
    monkeypatch.setattr(threads, "waiting_share", lambda *_: next(shares))
    monkeypatch.setattr(threads.time, "sleep", look_at_teams)
    with pytest.raises(StopIteration):
        watch_cores()
    assert running == [[], [], [True], [True], [False], [False, True]]
