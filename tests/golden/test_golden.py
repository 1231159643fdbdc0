"""Recordings are compared by value: what differs is said, and a renamed key is no difference."""

from __future__ import annotations

from tests.golden.golden import compare

BEFORE = {
    "attack": {"clean": {"accuracy": 0.5, "hit": [1, 2]}, "zero": 3},
    "metrics": [{"step": 5, "r1": 0.25}, {"step": 10, "r1": 0.5}],
}


def compared(after):
    said = []
    return compare(BEFORE, after, said.append), said


def test_equal_recordings_are_equal():
    assert compared(BEFORE) == (True, ["equal"])


def test_renamed_keys_are_listed_and_no_difference():
    lines = [{"step": line["step"], "input_grad_norm": line["r1"]} for line in BEFORE["metrics"]]
    same, said = compared({**BEFORE, "metrics": lines})
    assert same and said == ["metrics: equal but for names", "  renamed r1 -> input_grad_norm (2 values)", "equal"]


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
