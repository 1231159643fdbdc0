"""The cache: listed and removed by name or age, never while it is in use, and never with a trained model."""

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
JUDGE = "fedcba9876543210" * 2
LEFTOVER = f"judges/{JUDGE}/checkpoints/.step-00000002.safetensors.k3_x9abc"
FOREIGN = (
    "features/model.py",
    "features/.gitignore",
    f"judges/{JUDGE}/.gitignore",
    "attacks/notes/paper.txt",
    "models/mine/config.yaml",
)


@pytest.fixture
def filled(own_home):
    """A judge, a data set, features, an old attack, the leftover of a killed process, and files that are not rjem's."""
    sizes = {
        f"judges/{JUDGE}/checkpoints/step-00000001.safetensors": 5000,
        "datasets/cifar10/cifar-10-binary.tar.gz": 10,
        LEFTOVER: 70,
    }
    sizes |= {f"features/{40 * digit}.safetensors": size for digit, size in (("1", 300), ("2", 400))}
    sizes |= {f"attacks/{OLD}/eps-0.1-part-00000.safetensors": 50}
    sizes |= dict.fromkeys(FOREIGN, 1000)
    for name, size in sizes.items():
        path = own_home / "cache" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    age(own_home / "cache" / "attacks" / OLD, 40 * DAY)
    for name in (LEFTOVER, *FOREIGN):
        age(own_home / "cache" / name, 400 * DAY)
    return own_home / "cache"


def age(path, seconds):
    for each in [*path.rglob("*"), path]:
        os.utime(each, (time.time() - seconds,) * 2)


def listed(rjem):
    return {entry["name"]: entry["bytes"] for entry in json.loads(rjem("cache", "ls", "--json").out)["entries"]}


ALL = {"datasets/cifar10": 10, "features": 700, f"judges/{JUDGE}": 6070, f"attacks/{OLD}": 50}


def test_each_entry_is_listed_with_its_size(rjem, filled):
    assert listed(rjem) == ALL
    outcome = rjem("cache", "ls")
    assert outcome.out.splitlines()[0].split("\t") == ["name", "size", "changed", "what it is"]
    assert f"judges/{JUDGE}\t6070\t" in outcome.out and "6.83 kB in " in outcome.err
    assert "KIND" not in rjem("cache").out and "prune" in rjem("cache").out  # its help


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"RJEM_CACHE": "/c", "RJEM_HOME": "/h"}, "/c"),
        ({"RJEM_HOME": "/h"}, "/h/cache"),
        ({"XDG_CACHE_HOME": "/x", "XDG_DATA_HOME": "/d"}, "/x/rjem"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="the XDG variables are Linux's")
def test_the_cache_is_where_the_variables_say(rjem, monkeypatch, variables, folder):
    monkeypatch.delenv("RJEM_HOME")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert rjem("cache", "dir").out == f"{folder}\n"
    runs = "/d/rjem/runs" if "XDG_DATA_HOME" in variables else "/h/runs"
    assert rjem("runs", "dir").out == f"{runs}\n"


def test_an_empty_cache_is_empty(rjem, own_home):
    assert listed(rjem) == {} and not own_home.exists()
    assert rjem("cache", "prune").code == 0
    outcome = rjem("cache", "rm", "features", "--yes")
    assert outcome.code == 3 and "it is empty" in outcome.error_line()


@pytest.mark.parametrize("variable", ["RJEM_HOME", "RJEM_CACHE"])
def test_a_folder_that_is_a_file_is_an_error(rjem, tmp_path, monkeypatch, variable):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(variable, str(tmp_path / "file"))
    outcome = rjem("runs" if variable == "RJEM_HOME" else "cache", "ls")
    assert outcome.code == 2 and "is a file" in outcome.error_line()


def test_named_entries_are_removed_and_a_dry_run_removes_nothing(rjem, filled):
    found = json.loads(rjem("cache", "rm", f"judges/{JUDGE}", "features", "--dry-run", "--json").out)
    assert [entry["name"] for entry in found["removed"]] == [f"judges/{JUDGE}", "features"] and listed(rjem) == ALL
    assert "removed 2, 6.77 kB" in rjem("cache", "rm", "judges", "features", "--yes").err
    assert listed(rjem) == {"datasets/cifar10": 10, f"attacks/{OLD}": 50}


def test_clearing_the_whole_cache_deletes_no_trained_model(rjem, filled, trained, monkeypatch):
    """Also if both lie in one folder."""
    for folder in (filled, filled.parent):
        monkeypatch.setenv("RJEM_CACHE", str(folder))
        assert not any("runs" in name or "tiny" in name for name in listed(rjem))
        for kind in {name.partition("/")[0] for name in listed(rjem)}:
            assert rjem("cache", "rm", kind, "--yes").code == 0
        assert listed(rjem) == {} and rjem("cache", "prune", "--older-than", "1s").code == 0
        assert rjem("cache", "rm", "runs", "--yes").code == 3
    runs = json.loads(rjem("runs", "ls", "--json").out)["runs"]
    assert [run["name"] for run in runs if not run["pretrained"]] == ["tiny"]
    assert rjem("generate", "tiny", "-n", 1, "-o", filled.parent / "samples").code == 0


def test_a_script_must_confirm_and_a_typo_gets_a_hint(rjem, filled):
    outcome = rjem("cache", "rm", "features")
    assert outcome.code == 2 and "--yes" in outcome.error_line()
    outcome = rjem("cache", "rm", "featurs", "--yes")
    assert outcome.code == 3 and "did you mean features" in outcome.error_line()
    assert listed(rjem) == ALL


@pytest.mark.parametrize("name", ["../outside", "judges/../..", "/etc", "judges/", ".", ""])
def test_no_name_leads_out_of_the_cache(rjem, filled, tmp_path, name):
    (tmp_path / "outside").mkdir()
    assert rjem("cache", "rm", name, "--yes").code == 3
    assert (tmp_path / "outside").exists() and listed(rjem) == ALL


def test_prune_removes_old_entries_that_are_made_again_and_leftovers(rjem, filled):
    age(filled / "datasets/cifar10", 400 * DAY)
    assert "would remove 2, 120 B" in rjem("cache", "prune", "--dry-run").err
    rjem("cache", "prune")
    assert listed(rjem) == {"datasets/cifar10": 10, "features": 700, f"judges/{JUDGE}": 6000}
    age(filled / "features", 8 * DAY)
    rjem("cache", "prune", "--older-than", "7d")
    assert listed(rjem) == {"datasets/cifar10": 10, f"judges/{JUDGE}": 6000}
    assert all((filled / name).exists() for name in FOREIGN)
    outcome = rjem("cache", "prune", "--older-than", "soon")
    assert outcome.code == 2 and "30d" in outcome.error_line()


@pytest.mark.parametrize(
    ("locked_path", "entry"),
    [
        (f"judges/{JUDGE}", f"judges/{JUDGE}"),
        (f"attacks/{OLD}/eps-0.1-part-00001.safetensors", f"attacks/{OLD}"),
        (f"features/{40 * '1'}.safetensors", "features"),
    ],
)
def test_an_entry_that_another_process_uses_stays(rjem, filled, locked_path, entry):
    before = listed(rjem)
    script = f"""
import sys
from pathlib import Path
from rjem_cli.files import locked
with locked(Path({str(filled / locked_path)!r})):
    print("locked", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdin and process.stdout.readline() == "locked\n"
        outcome = rjem("cache", "rm", entry, "datasets", "--yes")
        assert outcome.code == 1 and "1 of 2 not removed" in outcome.error_line() and "in use" in outcome.error_line()
        process.stdin.close()
    del before["datasets/cifar10"]
    assert listed(rjem) == before
    assert rjem("cache", "rm", entry, "--yes").code == 0 and entry not in listed(rjem)


def test_the_folder_of_a_kind_that_is_a_link_stays_one(rjem, filled, tmp_path):
    (filled / "features").rename(tmp_path / "large-disk")
    (filled / "features").symlink_to(tmp_path / "large-disk")
    assert listed(rjem)["features"] == 700 and rjem("cache", "rm", "features", "--yes").code == 0
    assert (filled / "features").is_symlink() and (tmp_path / "large-disk" / "model.py").exists()
    assert "features" not in listed(rjem)


def test_files_that_come_and_go_meanwhile_are_not_an_error(rjem, filled):
    judge = filled / "judges" / JUDGE
    (judge / "gone").symlink_to(judge / "nowhere")
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            (judge / ".metrics.jsonl.abcdefgh").write_bytes(b"x")
            (judge / ".metrics.jsonl.abcdefgh").unlink()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        assert all(rjem("cache", command, "--json").code == 0 for command in 20 * ("ls", "prune"))
    finally:
        stop.set()
        thread.join()


def test_lock_files_are_not_entries(rjem, filled):
    with locked(filled / "features" / f"{40 * '1'}.safetensors"):
        assert listed(rjem)["features"] == 700
