"""With --dry-run each command estimates its time and memory, and writes nothing."""

from __future__ import annotations

import json

import pytest

from tests.conftest import TINY_FLAGS
from tests.image_files import tree, write


def modification_times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", *TINY_FLAGS),
        ("generate", "tiny", "-n", 100, "-o", "samples"),
        ("langevin", "tiny", "-n", 8, "-o", "chains"),
        ("attack", "tiny", "--limit", 50, "--save", "attacked"),
        ("eval", "tiny", "--limit", 50, "--save", "scores"),
        ("eval", "digits:test", "--reference", "digits:train", "--allow-few"),
    ],
    ids=lambda arguments: f"{arguments[0]} {arguments[1]}",
)
def test_time_and_memory_are_estimated_and_no_file_changes(rjem, own_home, trained, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    before = modification_times(tmp_path)
    outcome = rjem(*arguments, "--dry-run")
    assert outcome.code == 0 and " on this device" in outcome.err and " s " in outcome.err and outcome.out == ""
    estimate = json.loads(rjem(*arguments, "--dry-run", "--json").out)
    assert estimate["seconds"] > 0 and (estimate["memory_bytes"] is None or estimate["memory_bytes"] > 1e7)
    assert modification_times(tmp_path) == before


def test_more_work_is_estimated_to_take_longer(rjem, trained):
    """By a larger factor than timing noise explains."""

    def seconds(*arguments):
        return json.loads(rjem(*arguments, "--dry-run", "--json").out)["seconds"]

    for few, many in [
        (("generate", "tiny", "-n", 100), ("generate", "tiny", "-n", 10_000_000)),
        (("langevin", "tiny", "--sgld-steps", 1), ("langevin", "tiny", "--sgld-steps", 100_000)),
        (("attack", "tiny", "--steps", 1), ("attack", "tiny", "--steps", 10_000)),
        (("eval", "tiny", "--steps", 1), ("eval", "tiny", "--steps", 10_000)),
    ]:
        assert seconds(*many) > 5 * seconds(*few)


def test_a_missing_feature_network_leaves_the_time_unknown_and_is_named(rjem, tmp_path):
    images = write(tree(), tmp_path / "photographs")
    flags = ("eval", images, "--reference", images, "--features", "inception", "--allow-few", "--dry-run")
    assert "the time is unknown: the network for features must be downloaded first" in rjem(*flags).err
    assert json.loads(rjem(*flags, "--json").out) == {"seconds": None, "memory_bytes": None}
