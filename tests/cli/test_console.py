"""Log lines, progress and tables."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from rjem_cli.cli import console, progress
from rjem_cli.cli.console import Console
from rjem_cli.cli.formatting import format_age, format_bytes, format_duration, least_width, sparkline
from rjem_cli.cli.progress import LOG_SECONDS, ProgressBar
from rjem_cli.errors import pluralize


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets, in seconds."""
    times = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: times[0])
    return times


def test_a_phase_is_logged_when_it_begins_every_few_seconds_and_when_it_ends(capsys, clock):
    bar = ProgressBar(Console().log)
    for clock[0], done in ((0.0, 0), (1.0, 10), (LOG_SECONDS, 30), (LOG_SECONDS + 1, 40), (20.0, 60)):
        bar.update("training", done, 60, "CE 1.00" if done else None)
    lines = ["training: 0 of 60", f"training: 30 of 60, {LOG_SECONDS} s left; CE 1.00", "training: 60 of 60, 20.0 s"]
    assert capsys.readouterr().err.splitlines() == lines


def test_a_phase_that_pauses_or_goes_back_does_not_begin_anew(capsys, clock):
    bar = ProgressBar(Console().log)
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


def test_quiet_shows_warnings_and_only_mute_hides_them(capsys):
    Console(quiet=True).log("a log line")
    Console(quiet=True).warn("a checkpoint is damaged")
    Console(quiet=True, mute=True).warn("reported by the first process")
    assert capsys.readouterr().err == "warning: a checkpoint is damaged\n"


TABLES = [
    (("what", "value", "95% interval"), [("accuracy", "98.31%", "97.1% to 99.0%"), ("robust accuracy", "93.60%", "")]),
    (("name", "size", "changed", ""), [("runs/a-run-with-a-name-of-more-than-thirty-signs", "1.5 MB", "3 h", "█████")]),
    (("class", *(f"robust {n}/255" for n in range(8))), [("aeroplane", *(f"{n}.5%" for n in range(8)))]),
    (("class", "images", "accuracy"), [("飛行機と自動車と鳥と猫", "100", "鹿犬蛙馬船 51.0%"), ("トラック", "9", "-")]),
]


@pytest.mark.parametrize(("columns", "rows"), TABLES)
@pytest.mark.parametrize("width", [1, 10, 36, 40, 44, 60, 80, 120])
def test_a_table_has_all_its_values_at_any_width(capsys, monkeypatch, width, columns, rows):
    monkeypatch.setattr(console, "is_terminal", lambda stream: True)
    monkeypatch.setenv("COLUMNS", str(width))
    Console().table("Scores", columns, rows)
    shown = capsys.readouterr().out.replace("│", " ").split()
    assert all(word in shown for row in rows for cell in row for word in cell.split())
    words = [found.rstrip(":") for found in shown]
    assert all(word.rstrip(":") in words for name in columns[1:] for word in name.split())


@pytest.mark.parametrize(("columns", "rows"), TABLES)
def test_a_table_is_drawn_in_its_least_width_and_as_records_below(capsys, monkeypatch, columns, rows):
    monkeypatch.setattr(console, "is_terminal", lambda stream: True)
    width = least_width(columns, rows)
    for available in (width, width - 1):
        monkeypatch.setenv("COLUMNS", str(available))
        Console().table("", columns, rows)
        lines = capsys.readouterr().out.splitlines()
        assert ("│" in "".join(lines)) == (available == width)
        assert available < width or max(map(cell_len, lines)) <= width


def test_a_log_line_that_cannot_be_written_ends_nothing(monkeypatch):
    class ClosedPipe:
        encoding = "utf-8"

        def isatty(self):
            return False

        def write(self, text):
            raise BrokenPipeError

        flush = write

    monkeypatch.setattr(console.sys, "stderr", ClosedPipe())
    Console().log("a log line")
    console.fail("an error")


def test_numbers_are_short_and_have_units():
    assert [format_duration(seconds) for seconds in (0.2, 61, 7500, 90_000)] == [
        "1 s",
        "1 min 1 s",
        "2 h 5 min",
        "1 d 1 h",
    ]
    assert [format_age(seconds) for seconds in (-1, 59, 3599, 7200, 200_000)] == ["0 s", "59 s", "59 min", "2 h", "2 d"]
    assert [format_bytes(count) for count in (0, 999, 1000, 1_540_000)] == ["0 B", "999 B", "1 kB", "1.54 MB"]
    assert (pluralize(1, "chain"), pluralize(0, "chain")) == ("1 chain", "0 chains")


def test_a_sparkline_shows_gaps_as_blanks_and_keeps_both_ends():
    assert sparkline([]) == "" and sparkline([0, None, float("nan"), 7]) == "▁  █"
    assert sparkline(range(1000))[0] == "▁" and sparkline(range(1000))[-1] == "█" and len(sparkline(range(1000))) == 32
