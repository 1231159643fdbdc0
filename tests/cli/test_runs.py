"""Runs: listed with their progress and scores, shown, and removed only when nobody trains them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


def listed(rjem):
    runs = json.loads(rjem("runs", "ls", "--json").out)["runs"]
    return {run["name"]: run for run in runs if not run["pretrained"]}


@pytest.fixture
def two_runs(trained, own_home):
    """`tiny` is finished; `begun` has a checkpoint of step 5, no summary, and trains for epochs."""
    checkpoints = own_home / "runs" / "begun" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "step-00000005.safetensors").write_bytes(b"x" * 100)
    (checkpoints.parent / "config.yaml").write_text("data: /photos\nsteps: null\nepochs: 150.0\n")
    (own_home / "runs" / "notes").mkdir()
    (own_home / "runs" / "notes" / "mine.txt").write_text("not a run")
    return own_home / "runs"


def test_runs_are_listed_with_progress_scores_and_size(rjem, two_runs, trained):
    runs = listed(rjem)
    assert list(runs) == ["begun", "tiny"]
    tiny, begun = runs["tiny"], runs["begun"]
    assert (tiny["step"], tiny["steps"], tiny["finished"], tiny["data"]) == (3, 3, True, "digits")
    assert tiny["test_accuracy"] == trained["test_accuracy"]["value"]
    assert (begun["step"], begun["steps"], begun["finished"], begun["data"]) == (5, None, False, "/photos")
    assert begun["test_accuracy"] is None and begun["bytes"] > 100
    header, *rows = [line.split("\t") for line in rjem("runs", "ls").out.splitlines()]
    assert header == ["name", "progress", "state", "data", "accuracy", "robust accuracy", "size", "changed"]
    rows = [row for row in rows if row[2] != "pretrained"]
    assert rows[0][:6] == ["begun", "step 5 of 150.0 epochs", "unfinished", "/photos", "", ""]
    assert rows[1][:4] == ["tiny", "3 of 3 steps", "finished", "digits"] and rows[1][4].endswith("%")


def test_a_run_that_is_trained_further_is_unfinished_until_its_next_summary(rjem, two_runs):
    (two_runs / "tiny" / "checkpoints" / "step-00000004.safetensors").write_bytes(b"")
    assert not listed(rjem)["tiny"]["finished"]


def test_a_run_is_shown_with_its_config_scores_and_checkpoints(rjem, two_runs, trained):
    document = json.loads(rjem("runs", "show", "tiny", "--json").out)
    assert document["config"]["dataset"] == "digits" and document["summary"]["step"] == 3
    assert document["checkpoints"][-1]["path"] == trained["checkpoint"] and document["checkpoints"][-1]["step"] == 3
    text = rjem("runs", "show", "tiny").out
    assert "checkpoints/step-00000003.safetensors\t3\t" in text and "accuracy\t" in text and "state\tfinished" in text
    assert rjem("runs", "show", "begun").code == 0


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"step": "3", "test_accuracy": 7}', '{"test_accuracy": {}}'])
def test_a_damaged_summary_or_config_does_not_hide_a_run(rjem, two_runs, content):
    (two_runs / "tiny" / "summary.json").write_text(content)
    (two_runs / "tiny" / "config.yaml").write_text(content)
    assert not listed(rjem)["tiny"]["finished"] and rjem("runs", "ls").code == 0
    assert rjem("runs", "show", "tiny").code == 0


def test_named_runs_are_removed_for_good_once_confirmed(rjem, two_runs):
    outcome = rjem("runs", "rm", "tiny")
    assert outcome.code == 2 and "--yes" in outcome.error_line()
    assert "would remove 1" in rjem("runs", "rm", "tiny", "--dry-run").err and "tiny" in listed(rjem)
    outcome = rjem("runs", "rm", "begn", "tiny", "--yes")
    assert outcome.code == 3 and "did you mean begun" in outcome.error_line()
    assert list(listed(rjem)) == ["begun", "tiny"]
    assert rjem("runs", "rm", "begun", "tiny", "--yes").code == 0
    assert listed(rjem) == {} and (two_runs / "notes" / "mine.txt").exists()
    assert rjem("runs", "show", "tiny").code == 3


@pytest.mark.parametrize("name", ["notes", "../outside", "tiny/checkpoints", "tiny/..", "/etc", ".", ""])
def test_no_name_leads_out_of_the_runs(rjem, two_runs, name):
    (two_runs.parent / "outside").mkdir()
    (two_runs.parent / "outside" / "config.yaml").write_text("")
    assert rjem("runs", "rm", name, "--yes").code == 3
    assert list(listed(rjem)) == ["begun", "tiny"] and (two_runs.parent / "outside").exists()


def test_a_run_that_another_process_trains_stays(rjem, two_runs):
    script = f"""
import sys
from pathlib import Path
from rjem_cli.files import locked
with locked(Path({str(two_runs / "tiny")!r})):
    print("locked", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdin and process.stdout.readline() == "locked\n"
        outcome = rjem("runs", "rm", "tiny", "begun", "--yes")
        assert outcome.code == 1 and "1 of 2 not removed" in outcome.error_line() and "in use" in outcome.error_line()
        process.stdin.close()
    assert list(listed(rjem)) == ["tiny"]
    assert rjem("runs", "rm", "tiny", "--yes").code == 0


def test_a_link_is_removed_and_not_what_it_leads_to(rjem, two_runs, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config.yaml").write_bytes(b"kept")
    (two_runs / "link").symlink_to(tmp_path / "elsewhere")
    assert "link" in listed(rjem) and rjem("runs", "rm", "link", "--yes").code == 0
    assert (tmp_path / "elsewhere" / "config.yaml").exists() and "link" not in listed(rjem)
