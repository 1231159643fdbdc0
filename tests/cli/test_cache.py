"""What RJEM_HOME holds can be listed and removed: by name, by age, and never under somebody's hands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from rjem_cli.files import locked

DAY = 86_400
OLD = "0123456789abcdef" * 2
LEFT = "runs/a/checkpoints/.step-00000002.safetensors.k3_x9abc"
FOREIGN = (
    "features/model.py",
    "features/.gitignore",
    "runs/a/.gitignore",
    "attacks/notes/paper.txt",
    "runs/c/notes.txt",
)


@pytest.fixture
def filled(own_home):
    """Two runs, features, parts of an attack that are old, what a kill left, and files that are none of rjem's."""
    sizes = {"runs/a/checkpoints/step-00000001.safetensors": 5000, "runs/b/config.yaml": 10, f"{LEFT}": 70}
    sizes |= {f"features/{40 * digit}.safetensors": size for digit, size in (("1", 300), ("2", 400))}
    sizes |= {f"attacks/{OLD}/eps-0.1-part-00000.safetensors": 50}
    sizes |= dict.fromkeys(FOREIGN, 1000)
    for name, size in sizes.items():
        path = own_home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    age(own_home / "attacks" / OLD, 40 * DAY)
    for name in (LEFT, *FOREIGN):
        age(own_home / name, 400 * DAY)
    return own_home


def age(path, seconds):
    for each in [*path.rglob("*"), path]:
        os.utime(each, (time.time() - seconds,) * 2)


def listed(rjem):
    return {entry["name"]: entry["bytes"] for entry in json.loads(rjem("cache", "ls", "--json").out)["entries"]}


def test_all_is_listed_with_its_size(rjem, filled):
    assert listed(rjem) == {"runs/a": 6070, "runs/b": 10, "features": 700, f"attacks/{OLD}": 50}
    outcome = rjem("cache", "ls")
    assert outcome.out.splitlines()[0].split("\t") == ["name", "size", "changed", "what it is"]
    assert "runs/a\t6070\t" in outcome.out and "6.83 kB in " in outcome.err
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
    assert "removed 2, 6.77 kB" in rjem("cache", "rm", "runs/a", "features", "--yes").err
    assert listed(rjem) == {"runs/b": 10, f"attacks/{OLD}": 50}
    assert rjem("cache", "rm", "runs", "--yes").code == 0
    assert listed(rjem) == {f"attacks/{OLD}": 50}


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
    assert listed(rjem) == {"runs/a": 6000, "runs/b": 10, "features": 700}
    age(filled / "features", 8 * DAY)
    rjem("cache", "prune", "--older-than", "7d")
    assert listed(rjem) == {"runs/a": 6000, "runs/b": 10}
    assert all((filled / name).exists() for name in FOREIGN)
    outcome = rjem("cache", "prune", "--older-than", "soon")
    assert outcome.code == 2 and "30d" in outcome.error_line()


@pytest.mark.parametrize(
    ("held", "entry"),
    [
        ("runs/a", "runs/a"),
        (f"attacks/{OLD}/eps-0.1-part-00001.safetensors", f"attacks/{OLD}"),
        (f"features/{40 * '1'}.safetensors", "features"),
    ],
)
def test_what_another_process_works_with_stays(rjem, filled, held, entry):
    before = listed(rjem)
    holding = f"""
import sys
from pathlib import Path
from rjem_cli.files import locked
with locked(Path({str(filled / held)!r})):
    print("held", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", holding]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdin and holder.stdout.readline() == "held\n"
        outcome = rjem("cache", "rm", entry, "runs/b", "--yes")
        assert outcome.code == 1 and "1 of 2 stay" in outcome.error_line() and "in use" in outcome.error_line()
        holder.stdin.close()
    del before["runs/b"]
    assert listed(rjem) == before
    assert rjem("cache", "rm", entry, "--yes").code == 0 and entry not in listed(rjem)


def test_a_link_is_removed_and_not_what_it_leads_to(rjem, filled, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_bytes(b"kept")
    (tmp_path / "elsewhere" / "config.yaml").write_bytes(b"kept")
    (filled / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    assert "runs/link" in listed(rjem) and rjem("cache", "rm", "runs/link", "--yes").code == 0
    assert (tmp_path / "elsewhere" / "config.yaml").exists() and "runs/link" not in listed(rjem)


def test_a_kind_that_is_a_link_stays_one(rjem, filled, tmp_path):
    (filled / "features").rename(tmp_path / "large-disk")
    (filled / "features").symlink_to(tmp_path / "large-disk")
    assert listed(rjem)["features"] == 700 and rjem("cache", "rm", "features", "--yes").code == 0
    assert (filled / "features").is_symlink() and (tmp_path / "large-disk" / "model.py").exists()
    assert "features" not in listed(rjem)


def test_files_that_come_and_go_meanwhile_are_no_error(rjem, filled):
    run = filled / "runs" / "a"
    (run / "gone").symlink_to(run / "nowhere")
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            (run / ".metrics.jsonl.abcdefgh").write_bytes(b"x")
            (run / ".metrics.jsonl.abcdefgh").unlink()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        assert all(rjem("cache", command, "--json").code == 0 for command in 20 * ("ls", "prune"))
    finally:
        stop.set()
        thread.join()


def test_locks_are_no_entries(rjem, filled):
    with locked(filled / "features" / f"{40 * '1'}.safetensors"):
        assert listed(rjem)["features"] == 700
