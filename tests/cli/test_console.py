"""What a log and a terminal are told."""

from __future__ import annotations

import pytest

from rjem_cli.cli import console
from rjem_cli.cli.console import LOG_SECONDS, Bar, Console


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


def test_warnings_are_heard_though_all_else_is_quiet(capsys):
    Console(quiet=True).say("talk")
    Console(quiet=True).warn("a checkpoint is damaged")
    Console(quiet=True, mute=True).warn("said by the first process")
    assert capsys.readouterr().err == "warning: a checkpoint is damaged\n"


TABLES = [
    (("what", "value", "95% interval"), [("accuracy", "98.31%", "97.1% to 99.0%"), ("robust accuracy", "93.60%", "")]),
    (("name", "size", "changed", ""), [("runs/a-run-with-a-name-of-more-than-thirty-signs", "1.5 MB", "3 h", "█████")]),
    (("class", *(f"robust {n}/255" for n in range(8))), [("aeroplane", *(f"{n}.5%" for n in range(8)))]),
]


@pytest.mark.parametrize(("columns", "rows"), TABLES)
@pytest.mark.parametrize("width", [1, 10, 40, 44, 60, 80, 120])
def test_a_table_has_all_its_values_at_any_width(capsys, monkeypatch, width, columns, rows):
    monkeypatch.setattr(console, "is_terminal", lambda stream: True)
    monkeypatch.setenv("COLUMNS", str(width))
    Console().table("Scores", columns, rows)
    shown = capsys.readouterr().out.replace("│", " ").split()
    assert all(word in shown for row in rows for cell in row for word in cell.split())
    assert all(
        word.rstrip(":") in [found.rstrip(":") for found in shown] for name in columns[1:] for word in name.split()
    )


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
