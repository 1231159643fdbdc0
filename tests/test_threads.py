"""How threads wait is decided once, for commands only, and never against the user's own choice."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rjem_cli.threads import SPIN_COUNT, limited_cores

CODE = "import os; {}; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"


def environment_after(code: str, **variables: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", CODE.format(code)]
    return subprocess.run(command, env=inherited | variables, capture_output=True, text=True, check=True).stdout


A_COMMAND = "from rjem_cli.__main__ import main; main(['cache', 'dir'])"


def test_a_command_limits_how_long_threads_spin():
    assert environment_after(A_COMMAND).splitlines()[-1] == f"{SPIN_COUNT} None"


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
