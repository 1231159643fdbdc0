"""Locks between processes, and files that are whole or not there."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys

import pytest

from rjem_cli import files


def hold(path, held, free) -> None:
    with files.locked(path):
        held.set()
        free.wait(30)


def test_who_waits_for_a_lock_is_called_meanwhile_and_may_give_up(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.01)
    path, context = tmp_path / "x", multiprocessing.get_context("spawn")
    held, free = context.Event(), context.Event()
    holder = context.Process(target=hold, args=(path, held, free))
    holder.start()
    assert held.wait(30)

    def give_up() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), files.locked(path, on_wait=give_up):
        raise AssertionError("two processes hold one lock")
    with files.locked(path, on_wait=free.set):
        assert free.is_set()
    holder.join()


def test_what_does_not_fit_is_not_appended_in_part(tmp_path):
    """In a process of its own, whose files may not grow."""
    script = f"""
import resource
from pathlib import Path
from rjem_cli.errors import RjemError
from rjem_cli.files import append_text
path = Path({str(tmp_path / "lines")!r})
append_text(path, "first\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
try:
    append_text(path, "a second that does not fit\\n")
except RjemError as error:
    assert "File too large" in str(error)
assert path.read_text() == "first\\n"
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
append_text(path, "third\\n")
assert path.read_text() == "first\\nthird\\n"
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
