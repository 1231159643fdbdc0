"""What RJEM_HOME holds can be listed and removed: by name, by age, and never under somebody's hands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from rjem_cli.files import locked

DAY = 86_400


@pytest.fixture
def filled(own_home):
    """Two runs, features, a judge that is old, and what a kill left."""
    sizes = {"runs/a/checkpoints/step-00000001.safetensors": 5000, "runs/b/metrics.jsonl": 10}
    sizes |= {"features/one.safetensors": 300, "features/two.safetensors": 400, "judges/old/judge.json": 50}
    sizes |= {"runs/a/checkpoints/.step-00000002.safetensors.abc": 70}
    for name, size in sizes.items():
        path = own_home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    age(own_home / "judges/old", 40 * DAY)
    age(own_home / "runs/a/checkpoints/.step-00000002.safetensors.abc", 2 * DAY)
    return own_home


def age(path, seconds):
    for each in [*path.rglob("*"), path]:
        os.utime(each, (time.time() - seconds,) * 2)


def listed(rjem):
    return {entry["name"]: entry["bytes"] for entry in json.loads(rjem("cache", "ls", "--json").out)["entries"]}


def test_all_is_listed_with_its_size(rjem, filled):
    assert listed(rjem) == {"runs/a": 5070, "runs/b": 10, "features": 700, "judges/old": 50}
    outcome = rjem("cache", "ls")
    assert outcome.out.splitlines()[0].split("\t") == ["name", "size", "changed", "what it is"]
    assert "runs/a\t5070\t" in outcome.out and "5.83 kB in " in outcome.err
    assert rjem("cache", "dir").out == f"{filled}\n"


def test_an_empty_home_is_empty(rjem, own_home):
    assert listed(rjem) == {} and not own_home.exists()
    assert rjem("cache", "prune").code == 0
    outcome = rjem("cache", "rm", "runs", "--yes")
    assert outcome.code == 3 and "it is empty" in outcome.error_line()


def test_what_is_named_is_removed_and_a_dry_run_removes_nothing(rjem, filled):
    before = listed(rjem)
    found = json.loads(rjem("cache", "rm", "runs/a", "features", "--dry-run", "--json").out)
    assert [entry["name"] for entry in found["removed"]] == ["runs/a", "features"] and listed(rjem) == before
    assert "removed 2, 5.77 kB" in rjem("cache", "rm", "runs/a", "features", "--yes").err
    assert listed(rjem) == {"runs/b": 10, "judges/old": 50}
    assert rjem("cache", "rm", "runs", "--yes").code == 0
    assert listed(rjem) == {"judges/old": 50}


def test_a_script_must_say_yes_and_a_typing_error_is_met(rjem, filled):
    outcome = rjem("cache", "rm", "runs/a")
    assert outcome.code == 2 and "--yes" in outcome.error_line()
    outcome = rjem("cache", "rm", "runs/aa", "--yes")
    assert outcome.code == 3 and "did you mean runs/a" in outcome.error_line()
    assert "runs/a" in listed(rjem)


@pytest.mark.parametrize("name", ["../outside", "runs/../..", "/etc", "runs/", ".", ""])
def test_no_name_leads_out_of_the_home(rjem, filled, tmp_path, name):
    (tmp_path / "outside").mkdir()
    before = listed(rjem)
    assert rjem("cache", "rm", name, "--yes").code == 3
    assert (tmp_path / "outside").exists() and listed(rjem) == before


def test_prune_takes_what_is_old_and_made_again_and_what_kills_left(rjem, filled):
    age(filled / "runs/b", 400 * DAY)
    assert "would remove 2, 120 B" in rjem("cache", "prune", "--dry-run").err
    rjem("cache", "prune")
    assert listed(rjem) == {"runs/a": 5000, "runs/b": 10, "features": 700}
    age(filled / "features", 8 * DAY)
    rjem("cache", "prune", "--older-than", "7d")
    assert listed(rjem) == {"runs/a": 5000, "runs/b": 10}
    outcome = rjem("cache", "prune", "--older-than", "soon")
    assert outcome.code == 2 and "30d" in outcome.error_line()


def test_what_another_process_works_with_stays(rjem, filled):
    held = f"""
import sys, time
from pathlib import Path
from rjem_cli.files import locked
with locked(Path({str(filled / "runs/a")!r})):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout and holder.stdin and holder.stdout.readline() == "held\n"
        outcome = rjem("cache", "rm", "runs", "--yes")
        assert outcome.code == 1 and "1 of 2 stay" in outcome.error_line() and "in use" in outcome.error_line()
        holder.stdin.close()
    assert listed(rjem) == {"runs/a": 5070, "judges/old": 50, "features": 700}


def test_a_link_is_removed_and_not_what_it_leads_to(rjem, filled, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_bytes(b"kept")
    (filled / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    assert rjem("cache", "rm", "runs/link", "--yes").code == 0
    assert (tmp_path / "elsewhere" / "file").exists() and "runs/link" not in listed(rjem)


def test_locks_are_no_entries(rjem, filled):
    with locked(filled / "features" / "one.safetensors"):
        assert listed(rjem)["features"] == 700
