"""Recordings are compared by value. Differences are listed; a renamed key is none."""

from __future__ import annotations

import sys

import pytest

from tests.golden.golden import compare, record

BEFORE = {
    "attack": {"clean": {"accuracy": 0.5, "hit": [1, 2]}, "zero": 3},
    "metrics": [{"step": 5, "r1": 0.25}, {"step": 10, "r1": 0.5}],
}


def compared(after):
    said = []
    return compare(BEFORE, after, said.append), said


def test_equal_recordings_are_equal():
    assert compared(BEFORE) == (True, ["equal"])


def test_renamed_keys_are_listed_and_are_no_difference():
    lines = [{"step": line["step"], "input_grad_norm": line["r1"]} for line in BEFORE["metrics"]]
    same, said = compared({**BEFORE, "metrics": lines})
    assert same and said == [
        "metrics: equal except for renamed keys",
        "  renamed r1 -> input_grad_norm (2 values)",
        "equal",
    ]


def test_two_renames_on_one_path_are_found():
    after = {"clean_result": {"accuracy": 0.5, "success": [1, 2]}, "zero": 3}
    same, said = compared({**BEFORE, "attack": after})
    assert same and said[1:3] == ["  renamed clean -> clean_result (3 values)", "  renamed hit -> success (2 values)"]


def test_what_moved_within_a_list_differs():
    same, _ = compared({**BEFORE, "metrics": BEFORE["metrics"][::-1]})
    assert not same


def test_a_key_that_is_gone_from_one_place_only_is_no_rename():
    lines = [{"step": 5, "input_grad_norm": 0.25}, BEFORE["metrics"][1]]
    same, said = compared({**BEFORE, "metrics": lines})
    assert not same and "  0.r1: 0.25 is gone" in said


def test_values_that_changed_vanished_or_are_new_are_listed():
    attack = {"clean": {"accuracy": 0.75, "hit": [1, 2, 4]}}
    same, said = compared({"attack": attack, "eval": {}})
    assert not same and said == [
        "attack: 1 changed, 1 gone, 1 new of 4 values",
        "  clean.accuracy: 0.5 -> 0.75",
        "  zero: 3 is gone",
        "  clean.hit.2: 4 is new",
        "eval: only in the second recording",
        "metrics: only in the first recording",
        "the recordings differ",
    ]


def test_a_value_that_moved_to_another_name_and_changed_is_a_difference():
    same, said = compared({**BEFORE, "attack": {"clean": BEFORE["attack"]["clean"], "zeros": 4}})
    assert not same and "  zero: 3 is gone" in said and "  zeros: 4 is new" in said


@pytest.mark.slow
def test_two_recordings_of_one_tree_are_equal():
    rjem = [sys.executable, "-m", "rjem_cli"]
    assert compare(record(rjem), record(rjem))
