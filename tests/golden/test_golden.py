"""Recordings are compared by value. Differences are listed; a renamed key is not a difference."""

from __future__ import annotations

import json
import os
import sys

import pytest

from tests.golden import golden
from tests.golden.golden import compare, parse_command, record

BEFORE = {
    "attack": {"clean": {"accuracy": 0.5, "hit": [1, 2]}, "zero": 3},
    "metrics": [{"step": 5, "r1": 0.25}, {"step": 10, "r1": 0.5}],
}


def compared(after):
    lines = []
    return compare(BEFORE, after, lines.append), lines


def test_equal_recordings_are_equal():
    assert compared(BEFORE) == (True, ["equal"])


def test_renamed_keys_are_listed_and_are_no_difference():
    metrics = [{"step": line["step"], "input_grad_norm": line["r1"]} for line in BEFORE["metrics"]]
    equal, lines = compared({**BEFORE, "metrics": metrics})
    assert equal and lines == [
        "metrics: equal except for renamed keys",
        "  renamed r1 -> input_grad_norm (2 values)",
        "equal",
    ]


def test_two_renames_on_one_path_are_found():
    after = {"clean_result": {"accuracy": 0.5, "success": [1, 2]}, "zero": 3}
    equal, lines = compared({**BEFORE, "attack": after})
    assert equal and lines[1:3] == ["  renamed clean -> clean_result (3 values)", "  renamed hit -> success (2 values)"]


def test_what_moved_within_a_list_differs():
    equal, _ = compared({**BEFORE, "metrics": BEFORE["metrics"][::-1]})
    assert not equal


def test_a_key_that_is_gone_from_one_place_only_is_no_rename():
    metrics = [{"step": 5, "input_grad_norm": 0.25}, BEFORE["metrics"][1]]
    equal, lines = compared({**BEFORE, "metrics": metrics})
    assert not equal and "  0.r1: 0.25 is gone" in lines


def test_values_that_changed_vanished_or_are_new_are_listed():
    attack = {"clean": {"accuracy": 0.75, "hit": [1, 2, 4]}}
    equal, lines = compared({"attack": attack, "eval": {}})
    assert not equal and lines == [
        "attack: 1 changed, 1 gone, 1 new of 4 values",
        "  clean.accuracy: 0.5 -> 0.75",
        "  zero: 3 is gone",
        "  clean.hit.2: 4 is new",
        "eval: only in the second recording",
        "metrics: only in the first recording",
        "the recordings differ",
    ]


def test_a_value_that_moved_to_another_name_and_changed_is_a_difference():
    equal, lines = compared({**BEFORE, "attack": {"clean": BEFORE["attack"]["clean"], "zeros": 4}})
    assert not equal and "  zero: 3 is gone" in lines and "  zeros: 4 is new" in lines


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (1, True, False),
        (0, False, False),
        (1, 1.0, False),
        (None, False, False),
        ("1", 1, False),
        ([], {}, False),
        ([], None, False),
        (float("nan"), float("nan"), True),
        (float("nan"), 0.0, False),
        (0.1, 0.1, True),
    ],
)
def test_values_are_equal_if_they_are_the_same_json(one, other, equal):
    assert compare({"a": {"b": one}}, {"a": {"b": other}}, lambda line: None) == equal


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read"), ("", "is not a recording"), ("{", "is not a recording"), ("[1]", "is not a recording")],
)
def test_a_missing_or_damaged_recording_gives_one_line(tmp_path, capsys, content, message):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(BEFORE))
    if content is not None:
        bad.write_text(content)
    for files in ([good, bad], [bad, good]):
        assert golden.main(["compare", *map(str, files)]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1 and message in captured.err
    assert golden.main(["compare", str(good), str(good)]) == 0


def test_a_recording_that_cannot_be_written_runs_no_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(golden, "record", None)
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "none" / "a.json", tmp_path / "file" / "a.json"):
        assert golden.main(["record", str(path)]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith(f"golden: cannot write {path}") and captured.err.count("\n") == 1


def test_a_relative_command_is_found_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "rjem").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "rjem").chmod(0o755)
    (tmp_path / "run.py").write_text("")
    assert parse_command("bin/rjem") == [str(tmp_path / "bin" / "rjem")]
    words = [os.path.abspath(sys.executable), str(tmp_path / "run.py"), "--flag"]
    assert parse_command(f"{sys.executable} run.py --flag") == words


@pytest.mark.parametrize("command", ["", "no-such-program -x", "'"])
def test_a_wrong_command_gives_one_line(tmp_path, capsys, command):
    assert golden.main(["record", str(tmp_path / "a.json"), "--rjem", command]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("golden: --rjem") and captured.err.count("\n") == 1


@pytest.mark.slow
def test_two_recordings_of_one_tree_are_equal():
    rjem = [sys.executable, "-m", "rjem_cli"]
    assert compare(record(rjem), record(rjem))
