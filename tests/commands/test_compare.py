"""`rjem compare` on tiny runs and samples: rows, forms, what is kept, and bad input."""

from __future__ import annotations

import csv
import io
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from rjem_cli.engine.comparison import measure, reproduce
from rjem_cli.engine.data.digits import load_digits
from rjem_cli.engine.quality import judge
from rjem_cli.interface import reproduction
from rjem_cli.interface.settings import Layer
from rjem_cli.paths import comparisons_dir
from tests.commands.conftest import TINY_FLAGS

QUICK = ("--samples", 60, "--limit", 20, "--steps", 1, "--is-splits", 2, "--features", "judge", "--allow-few")


@pytest.fixture(autouse=True)
def quick_judge(monkeypatch):
    """A judge that has hardly learnt anything, in no time."""
    monkeypatch.setattr(judge, "FEWEST_STEPS", 30)
    monkeypatch.setattr(judge, "EPOCHS", 1)


def compared(rjem, *arguments):
    outcome = rjem("compare", *arguments, "--json")
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def test_the_papers_table_alone(rjem):
    outcome = rjem("compare", "--published")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0] == "model\tIS\tFID" and lines[-1] == "Robust JEM [quoted]\t9.28\t47.92" and len(lines) == 7


def test_runs_and_samples_are_rows_and_what_was_measured_is_kept(rjem, own_home, trained, monkeypatch):
    rjem("train", "--run", "other", *TINY_FLAGS, "--pgd-steps", 0)
    rjem("generate", "tiny", "-n", 60, "-o", own_home / "made.npz")
    arguments = ("tiny", "other", own_home / "made.npz", "--published", "--mode", "energy,attack", *QUICK)
    found = compared(rjem, *arguments)
    rows = {row["name"]: row for row in found["rows"]}
    drawn = [f"{run} ({mode})" for run in ("tiny", "other") for mode in ("energy", "attack")]
    assert list(rows)[:5] == [*drawn, f"{own_home}/made.npz"]
    energy, made = rows["tiny (energy)"], rows[f"{own_home}/made.npz"]
    assert {"fd_judge", "is_judge", "accuracy", "robust_accuracy", "seconds_per_1000"} <= energy["scores"].keys()
    assert energy["scores"]["gradient_steps"] == 2 and energy["scores"]["images_seen"] == 3 * 16
    assert energy["scores"]["divergences"] == 0
    # the same samples, whoever drew them, have the same scores and the same protocol
    shared = made["scores"].keys()
    assert {name: energy["scores"][name] for name in shared} == made["scores"]
    assert {name: energy["protocols"][name] for name in made["protocols"]} == made["protocols"]
    assert rows["Robust JEM"]["scores"]["fid"] == 47.92 and rows["Robust JEM"]["best"] == []

    def refused(*arguments, **options):
        raise AssertionError("measured again")

    for name in ("scored", "write_samples"):
        monkeypatch.setattr(measure, name, refused)
    monkeypatch.setattr(measure.checkpoint_scores, "evaluate", refused)
    assert compared(rjem, *arguments) == found


def test_samples_of_other_counts_are_not_ranked(rjem, tmp_path):
    pixels = load_digits().pixels.permute(0, 2, 3, 1).numpy()
    for name, count in (("few", 300), ("more", 600)):
        np.savez(tmp_path / f"{name}.npz", arr_0=pixels[:count])
    outcome = rjem("compare", tmp_path / "few.npz", tmp_path / "more.npz", "--reference", "digits", "--format", "md")
    assert outcome.code == 0, outcome.err
    assert "not ranked, samples is 300" in outcome.out and "**" not in outcome.out


@pytest.mark.parametrize("form", ["md", "latex", "csv", "json"])
def test_each_form_goes_to_stdout_or_a_file(rjem, tmp_path, form):
    shown = rjem("compare", "--published", "--format", form)
    assert shown.code == 0 and "9.28" in shown.out
    written = rjem("compare", "--published", "--format", form, "-o", tmp_path / "table")
    assert written.out == f"{tmp_path / 'table'}\n" and (tmp_path / "table").read_text() == shown.out
    if form == "csv":
        assert len(list(csv.DictReader(io.StringIO(shown.out)))) == 6


def test_a_page_of_runs_and_samples(rjem, own_home, trained, tmp_path):
    rjem("generate", "tiny", "-n", 60, "-o", own_home / "made.npz")
    arguments = (
        "compare",
        "tiny",
        own_home / "made.npz",
        "--published",
        *QUICK,
        "--html",
        tmp_path / "new/report.html",
    )
    assert rjem(*arguments).code == 0
    page = (tmp_path / "new" / "report.html").read_text()
    for heading in ("Scores", "Samples", "Training", "Chains", "Protocols", "Settings of the runs"):
        assert f"<h2>{heading}</h2>" in page
    assert page.count("<img ") == 3 + 4 + 2  # sheets, curves, film and energies
    assert f"rjem compare tiny {own_home}/made.npz --" in page and " --published " in page
    again = rjem(*arguments)  # the chains are kept as well
    assert "chains:" not in again.err and (tmp_path / "new" / "report.html").read_text() == page


def test_quiet_leaves_the_rows(rjem):
    outcome = rjem("compare", "--published", "-q")
    assert outcome.err == "" and outcome.out == rjem("compare", "--published").out


def test_dry_run_measures_nothing(rjem, own_home, trained):
    outcome = rjem("compare", "tiny", "--dry-run")
    assert outcome.code == 0 and "step-00000003.safetensors, modes energy" in outcome.err
    assert not comparisons_dir().exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "nothing to compare"),
        (["nobody"], 3, "nobody is not there"),
        (["--published", "--mode", "magic"], 2, "--mode 'magic'"),
        (["--published", "--eps", "0.1,0.2"], 2, "give one radius"),
        (["--published", "--format", "xlsx"], 2, "--format 'xlsx' is unknown"),
        (["--published", "-o", "table.txt"], 2, "-o needs a --format"),
        (["--published", "--html", "."], 2, "--html . is a folder"),
        (["--published", "--html", "-"], 2, "--html -: give a file's name"),
        (["--published", "--html", "/proc/none/report.html"], 1, "/proc/none"),
    ],
)
def test_bad_input_gives_one_line_and_its_exit_code(rjem, arguments, code, message):
    outcome = rjem("compare", *arguments)
    assert outcome.code == code and message in outcome.error_line()


def reproduced(rjem, *arguments):
    flags = ("--reproduce", "table1", "--train-steps", 2, "--seeds", 2, *QUICK)
    return rjem("compare", *flags, *arguments)


@pytest.fixture
def quick_presets(monkeypatch):
    """The quickstart's models with steps that cost nothing."""
    few = {"pgd_steps": 1, "sgld_steps": 1, "sample_steps": 1, "attack_steps": 1, "buffer_size": 64}
    layer = reproduction.preset_layer
    monkeypatch.setattr(
        reproduction, "preset_layer", lambda name: Layer(f"preset {name}", {**layer(name).values, **few})
    )


def test_the_papers_table_is_reproduced_with_seeds(rjem, own_home, quick_presets):
    plan = reproduced(rjem, "--dry-run")
    assert plan.code == 0 and plan.err.count("to do") == 6 and not (own_home / "runs").exists()
    outcome = reproduced(rjem, "--published", "--json")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    names = ["JEM++", "Single Robust Classifier", "Robust JEM-Energy", "Robust JEM"]
    own = [row for row in document["rows"] if row["quoted"] is None]
    assert [row["name"] for row in own] == names and len(document["rows"]) == 10
    assert all(row["spreads"]["fd_judge"] > 0 and row["protocols"]["fd_judge"]["seeds"] == 2 for row in own)
    assert [row["scores"]["gradient_steps"] for row in own] == [1, 1, 1, 2]
    assert sum(note.startswith(("FD-judge: ", "IS-judge: ")) for note in document["notes"]) >= 12
    assert reproduced(rjem, "--dry-run").err.count("done") == 6
    again = reproduced(rjem, "--published", "--json")
    assert json.loads(again.out) == document and "training" not in again.err


def test_a_reproduction_that_was_stopped_ends_with_the_same_table(rjem, own_home, quick_presets, monkeypatch, tmp_path):
    whole = json.loads(reproduced(rjem, "--json").out)
    monkeypatch.setenv("RJEM_HOME", str(tmp_path / "other-home"))
    for name in ("run_training", "run_rows"):
        calls = itertools.count()
        step = getattr(reproduce, name)

        def killed(*arguments, calls=calls, step=step, **options):
            if next(calls) == 1:
                raise KeyboardInterrupt
            return step(*arguments, **options)

        monkeypatch.setattr(reproduce, name, killed)
        assert reproduced(rjem, "--json").code == 130
    resumed = json.loads(reproduced(rjem, "--json").out)

    def without_time(document):
        for row in document["rows"]:
            for group in ("scores", "spreads"):
                row[group].pop("seconds_per_1000", None)
            row["best"] = [name for name in row["best"] if name != "seconds_per_1000"]
            row["notes"] = []
        return document["rows"]

    assert without_time(resumed) == without_time(whole)


def test_a_model_that_diverges_is_counted_and_not_trained_again(rjem, own_home, quick_presets, monkeypatch):
    train = reproduce.run_training

    def diverging(config, *arguments, **options):
        if config.run == "table1-quickstart-2-steps-jempp-1":
            config = replace(config, lr=1e9, warmup_steps=0, max_divergences=0)
        return train(config, *arguments, **options)

    monkeypatch.setattr(reproduce, "run_training", diverging)
    found = json.loads(reproduced(rjem, "--json").out)
    jempp = found["rows"][0]
    assert "JEM++ is of the 1 of 2 seeds that did not diverge" in jempp["notes"]
    assert "table1-quickstart-2-steps-jempp-1 diverged" in jempp["notes"] and jempp["scores"]["fd_judge"] > 0
    assert all("one seed" in each["why"] for each in found["orderings"] if "JEM++" in each["claim"])
    monkeypatch.setattr(reproduce, "run_training", None)
    assert json.loads(reproduced(rjem, "--json").out) == found
    assert "jempp-1: " in (plan := reproduced(rjem, "--dry-run").err) and "; diverged" in plan
