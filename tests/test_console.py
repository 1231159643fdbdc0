"""What a log and a terminal are told."""

from __future__ import annotations

import pytest

from rjem_cli.interface import console
from rjem_cli.interface.console import LOG_SECONDS, Bar, Console


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets, in seconds."""
    times = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: times[0])
    return times


def test_a_log_hears_of_a_phase_as_it_begins_now_and_then_and_as_it_ends(capsys, clock):
    bar = Bar(Console())
    for clock[0], done in ((0.0, 0), (1.0, 10), (LOG_SECONDS, 30), (LOG_SECONDS + 1, 40), (20.0, 60)):
        bar.update("training", done, 60, "CE 1.00" if done else None)
    lines = ["training: 0 of 60", f"training: 30 of 60, {LOG_SECONDS} s left; CE 1.00", "training: 60 of 60, 20.0 s"]
    assert capsys.readouterr().err.splitlines() == lines


def test_a_phase_that_rests_or_goes_back_is_not_begun_anew(capsys, clock):
    bar = Bar(Console())
    for clock[0], phase, done in (
        (0.0, "training", 0),
        (5.0, "training", 20),
        (6.0, "drawing", 0),
        (8.0, "drawing", 3),
        (9.0, "training", 10),  # back to a checkpoint
        (10.0, "drawing", 0),
        (12.0, "drawing", 3),
        (29.0, "training", 40),
    ):
        bar.update(phase, done, 40 if phase == "training" else 3)
    assert capsys.readouterr().err.splitlines() == [
        "training: 0 of 40",
        "drawing: 0 of 3",
        "drawing: 3 of 3, 2.0 s",
        "training: 40 of 40, 20.0 s",  # since it went back
    ]


def test_talk_that_cannot_be_written_ends_nothing(monkeypatch):
    class Gone:
        encoding = "utf-8"

        def isatty(self):
            return False

        def write(self, text):
            raise BrokenPipeError

        flush = write

    monkeypatch.setattr(console.sys, "stderr", Gone())
    Console().say("a word")
    console.fail("an error")
