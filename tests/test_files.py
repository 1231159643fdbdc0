"""Locks between processes, and files that are whole or not there."""

from __future__ import annotations

import multiprocessing

import pytest

from rjem_cli import files


def hold(path, held, free) -> None:
    with files.locked(path):
        held.set()
        free.wait(30)


def test_who_waits_for_a_lock_is_called_meanwhile_and_may_give_up(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LOCK_PATIENCE", 0.01)
    path, context = tmp_path / "x", multiprocessing.get_context("spawn")
    held, free = context.Event(), context.Event()
    holder = context.Process(target=hold, args=(path, held, free))
    holder.start()
    assert held.wait(30)

    def give_up() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), files.locked(path, waiting=give_up):
        raise AssertionError("two processes hold one lock")
    with files.locked(path, waiting=free.set):
        assert free.is_set()
    holder.join()
