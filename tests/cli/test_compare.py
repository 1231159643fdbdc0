"""`rjem compare` on tiny runs and samples: rows, formats, caches, and bad input."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from rjem_cli.config.sources import ConfigSource
from rjem_cli.config.training import PAPER_SAMPLING
from rjem_cli.engine.compare import measure, reproduce, samples
from rjem_cli.engine.data.load import load_digits
from rjem_cli.engine.data.png import to_image
from rjem_cli.engine.runtime import Runtime
from rjem_cli.engine.training.trainer import Trainer
from rjem_cli.paths import checkpoints_in, comparisons_dir
from tests.conftest import TINY_FLAGS
from tests.poisons import nan_in_a_weight

QUICK = ("--samples", 60, "--limit", 20, "--steps", 1, "--is-splits", 2, "--features", "judge", "--allow-few")


@pytest.fixture(autouse=True)
def judged(digits_judge):
    """A cached judge of digits; other judges are trained for a few steps."""


def compared(rjem, *arguments):
    outcome = rjem("compare", *arguments, "--json")
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def test_published_rows_alone_make_a_table(rjem):
    outcome = rjem("compare", "--published")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0] == "model\tIS\tFID" and lines[-1] == "Robust JEM [quoted]\t9.28\t47.92" and len(lines) == 7


def test_runs_and_samples_are_rows_and_measurements_are_cached(rjem, own_home, trained, monkeypatch):
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

    monkeypatch.setattr(samples, "write_samples", refused)
    monkeypatch.setattr(measure.sample_scores, "evaluate_samples", refused)
    monkeypatch.setattr(measure.classifier, "evaluate_classifier", refused)
    assert compared(rjem, *arguments) == found


def test_several_features_give_several_groups_of_columns(rjem, own_home, trained):
    rjem("generate", "tiny", "-n", 12, "-o", own_home / "made.npz")
    rjem("generate", "tiny", "-n", 12, "--seed", 12, "-o", own_home / "real.npz")
    reference = ("--reference", own_home / "real.npz", "--metrics", "fid,kid", "--allow-few")
    judge = next((own_home / "cache/judges").glob("*/checkpoints/*[0-9].safetensors"))
    found = compared(rjem, own_home / "made.npz", *reference, "--features", f"{judge},efficientnet-lite0")
    (row,) = found["rows"]
    assert {"fd_judge", "kd_judge_mean", "fd_efficientnet", "kd_efficientnet_mean"} <= row["scores"].keys()
    assert row["protocols"]["fd_judge"]["features"] != row["protocols"]["fd_efficientnet"]["features"]
    assert sum("by features of" in note for note in found["notes"]) == 2
    alone = compared(rjem, own_home / "made.npz", *reference, "--features", "efficientnet-lite0")["rows"][0]["scores"]
    assert alone["fd_efficientnet"] == row["scores"]["fd_efficientnet"] and "fd_judge" not in alone


def test_the_reference_is_read_once_for_several_features(rjem, tmp_path, monkeypatch):
    pixels = load_digits().pixels.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "made.npz", arr_0=pixels[:60])
    read, read_reference = [], measure.sample_scores.read_reference

    def counted(*arguments, **options):
        read.append(arguments[0])
        return read_reference(*arguments, **options)

    monkeypatch.setattr(measure.sample_scores, "read_reference", counted)
    flags = ("--reference", "digits:test", "--features", "judge,efficientnet-lite0", "--allow-few", "--dry-run")
    outcome = rjem("compare", tmp_path / "made.npz", *flags)
    assert outcome.code == 0, outcome.err
    assert "features by judge" in outcome.err and "features by efficientnet-lite0" in outcome.err
    assert read == ["digits:test"]


def test_an_option_for_samples_does_not_test_checkpoints_again_nor_the_reverse(rjem, own_home, trained, monkeypatch):
    calls = []

    def count(module, function):
        original = getattr(module, function)

        def counted(*arguments, **options):
            calls.append(function)
            return original(*arguments, **options)

        monkeypatch.setattr(module, function, counted)

    count(measure.sample_scores, "evaluate_samples")
    count(measure.classifier, "evaluate_classifier")
    for changed, measured in [
        ((), ["evaluate_samples", "evaluate_classifier"]),
        (("--num", 40), ["evaluate_samples"]),
        (("--metrics", "fid"), ["evaluate_samples"]),
        (("--limit", 30), ["evaluate_classifier"]),
    ]:
        calls.clear()
        compared(rjem, "tiny", *QUICK, *changed)
        assert set(calls) == set(measured), changed


def test_samples_of_other_counts_are_not_ranked(rjem, tmp_path):
    pixels = load_digits().pixels.permute(0, 2, 3, 1).numpy()
    for name, count in (("few", 300), ("more", 600)):
        np.savez(tmp_path / f"{name}.npz", arr_0=pixels[:count])
    outcome = rjem("compare", tmp_path / "few.npz", tmp_path / "more.npz", "--reference", "digits", "--format", "md")
    assert outcome.code == 0, outcome.err
    assert "not ranked, samples is 300" in outcome.out and "**" not in outcome.out


@pytest.mark.parametrize("form", ["md", "latex", "csv", "json"])
def test_each_format_goes_to_stdout_or_a_file(rjem, tmp_path, form):
    shown = rjem("compare", "--published", "--format", form)
    assert shown.code == 0 and "9.28" in shown.out
    written = rjem("compare", "--published", "--format", form, "-o", tmp_path / "table")
    assert written.out == f"{tmp_path / 'table'}\n" and (tmp_path / "table").read_text() == shown.out
    if form == "csv":
        assert len(list(csv.DictReader(io.StringIO(shown.out)))) == 6


@pytest.mark.parametrize(
    ("ending", "form"), [(".md", "md"), (".TEX", "latex"), (".csv", "csv"), (".json", "json"), (".txt", "md")]
)
def test_the_file_name_decides_the_format_unless_it_is_given(rjem, tmp_path, ending, form):
    file = tmp_path / f"table{ending}"
    flags = ("--format", form) if ending == ".txt" else ()
    assert rjem("compare", "--published", *flags, "-o", file).code == 0
    assert file.read_text() == rjem("compare", "--published", "--format", form).out


def test_a_report_of_runs_and_samples(rjem, own_home, trained, tmp_path):
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
    assert page.count("<img ") == 3 + 4 + 2  # grids, curves, film and energies
    assert f"rjem compare tiny {own_home}/made.npz --" in page and " --published " in page
    again = rjem(*arguments)  # the chains are cached too
    assert "chains:" not in again.err and (tmp_path / "new" / "report.html").read_text() == page


def test_quiet_prints_the_rows_alone(rjem):
    outcome = rjem("compare", "--published", "-q")
    assert outcome.err == "" and outcome.out == rjem("compare", "--published").out


def test_dry_run_measures_nothing(rjem, own_home, trained):
    shutil.rmtree(own_home / "cache" / "judges")
    rjem("generate", "tiny", "-n", 60, "-o", own_home / "made.npz")
    outcome = rjem("compare", "tiny", own_home / "made.npz", "--mode", "energy,combined", *QUICK, "--dry-run")
    assert outcome.code == 0, outcome.err
    run, scored = outcome.err.splitlines()[-2:]
    assert "step-00000003.safetensors, tested on images of digits, 60 samples" in run
    assert run.endswith("mode energy, 2 passes each; mode combined, 4 passes each")
    assert "60 samples against digits" in scored and "features by judge" in scored
    assert "trains and caches a judge first" in scored
    assert not comparisons_dir().exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "nothing to compare"),
        (["nobody"], 3, "no images, checkpoint or run named 'nobody'"),
        (["--published", "--mode", "magic"], 2, "--mode 'magic'"),
        (["--published", "--eps", "0.1,0.2"], 2, "give one radius"),
        (["--published", "--seeds", "3"], 2, "--seeds needs --reproduce"),
        (["--reproduce", "table1", "--mode", "attack"], 2, "--mode only applies to runs"),
        (["--published", "--format", "xlsx"], 2, "--format 'xlsx' is unknown"),
        (["--published", "-o", "table.txt"], 2, "-o table.txt: give --format, or a name that ends in .md"),
        (["--published", "--html", "."], 2, "--html . is a folder"),
        (["tiny", "--metrics", "magic"], 2, "magic"),
        (["tiny", "--model", "m:f", "--dataset", "digits"], 2, "--model m:f: compare tests checkpoints only"),
        (["tiny", "--reference", "nowhere/"], 3, "--reference nowhere/"),
        (["tiny", "--metrics", "fid", "--features", "judge", "--samples", "128"], 2, "use 129 or more"),
        (["--published", "--html", "-"], 2, "--html -: give a file's name"),
        (["--published", "--html", "/proc/none/report.html"], 1, "/proc/none"),
    ],
)
def test_bad_input_gives_one_line_and_its_exit_code_before_any_work(rjem, trained, arguments, code, message):
    outcome = rjem("compare", *arguments)
    assert outcome.code == code and message in outcome.error_line()
    assert not comparisons_dir().exists()


def reproduced(rjem, *arguments):
    flags = ("--reproduce", "table1", "--train-steps", 2, "--seeds", 2, *QUICK)
    return rjem("compare", *flags, *arguments)


@pytest.fixture
def quick_presets(monkeypatch):
    """The quickstart's models with very few steps."""
    few = {
        "dataset": "digits",
        "pgd_steps": 1,
        "sgld_steps": 1,
        "buffer_size": 64,
    }
    monkeypatch.setattr(reproduce, "PAPER_SAMPLING", replace(PAPER_SAMPLING, sample_steps=1, attack_steps=1))
    source = reproduce.preset_source
    monkeypatch.setattr(
        reproduce, "preset_source", lambda name: ConfigSource(f"preset {name}", {**source(name).values, **few})
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
    assert all(row["spreads"]["fd_judge"] > 0 and row["seeds"] == 2 == len(row["origins"]) for row in own)
    assert [row["scores"]["gradient_steps"] for row in own] == [1, 1, 1, 2]
    assert [each["claim"].split(": ")[0] for each in document["orderings"]] == ["IS-judge"] * 6 + ["FD-judge"] * 6
    assert all("2 seeds" in each["reason"] for each in document["orderings"])
    assert reproduced(rjem, "--dry-run").err.count("done") == 6
    again = reproduced(rjem, "--published", "--json")
    assert json.loads(again.out) == document and ": 0 of 2" not in again.err


def test_a_plan_names_the_downloads_and_their_size(rjem, own_home, monkeypatch):
    monkeypatch.delenv("RJEM_OFFLINE")
    plan = rjem("compare", "--reproduce", "table1", "--scale", "small", "--dry-run")
    assert plan.code == 0 and plan.err.splitlines()[0].endswith("downloads cifar10 first, 170 MB")
    assert plan.err.count("; to do") == 3 and "3 trainings, " in plan.err
    plan = rjem("compare", "--reproduce", "table1", "--dry-run", "--json")
    assert "downloads" not in plan.err and json.loads(plan.out)["plan"] == plan.err.splitlines()


def test_a_scale_sets_the_steps_unless_they_are_given(rjem):
    plan = rjem("compare", "--reproduce", "table1", "--scale", "cifar10-16", "--dry-run").err
    assert plan.count("WRN-10-2, 2000 steps of 64 images") == 3 and "5000 samples per row" in plan
    plan = rjem("compare", "--reproduce", "table1", "--scale", "cifar10-16", "--train-steps", "7", "--dry-run").err
    assert plan.count("WRN-10-2, 7 steps of 64 images") == 3


def test_a_reproduction_trains_on_images_of_the_size_that_was_asked_for(rjem, own_home, quick_presets):
    outcome = reproduced(rjem, "--seeds", 1, "--image-size", 6, "--json")
    assert outcome.code == 0, outcome.err
    configs = {path.parent.name: path.read_text() for path in (own_home / "runs").glob("*/config.yaml")}
    assert len(configs) == 3 and all("-6px-" in name and "image_size: 6\n" in text for name, text in configs.items())


def test_a_run_with_a_damaged_checkpoint_is_resumed_and_one_without_checkpoints_is_refused(
    rjem, own_home, quick_presets
):
    table = json.loads(reproduced(rjem, "--seeds", 1, "--json").out)
    run_dir = next((own_home / "runs").glob("*jempp-0"))
    newest = checkpoints_in(run_dir)[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    outcome = reproduced(rjem, "--seeds", 1, "--json")
    assert outcome.code == 0 and f"renamed {newest.name} to {newest.name}.quarantine" in outcome.err
    assert json.loads(outcome.out)["rows"][0]["scores"]["accuracy"] == table["rows"][0]["scores"]["accuracy"]
    shutil.rmtree(run_dir / "checkpoints")
    outcome = reproduced(rjem, "--seeds", 1)
    assert outcome.code == 1 and "has a metrics.jsonl but no checkpoint" in outcome.error_line()


def test_a_stopped_reproduction_resumes_to_the_same_table(rjem, own_home, quick_presets, monkeypatch, tmp_path):
    whole = json.loads(reproduced(rjem, "--json").out)
    monkeypatch.setenv("RJEM_HOME", str(tmp_path / "other-home"))
    for name in ("run_training", "measure_checkpoint"):
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
        """Without durations and the path of the judge, which depend on the home."""
        rows = [
            {
                "name": row["name"],
                "scores": {name: value for name, value in row["scores"].items() if name != "seconds_per_1000"},
                "spreads": {name: value for name, value in row["spreads"].items() if name != "seconds_per_1000"},
                "protocols": row["protocols"],
                "notes": [note for note in row["notes"] if "--features" not in note],
            }
            for row in document["rows"]
        ]
        return rows, document["orderings"]

    assert without_time(resumed) == without_time(whole)


def test_a_lost_run_is_counted_and_not_trained_again(rjem, own_home, quick_presets, monkeypatch, tmp_path):
    take = Trainer.train_step

    def train_step(trainer):
        if trainer.run_dir.name == "table1-quickstart-2-steps-jempp-1":
            nan_in_a_weight(trainer)
        return take(trainer)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    found = json.loads(reproduced(rjem, "--json").out)
    jempp = found["rows"][0]
    assert "JEM++: 1 of 2 seeds, because the others diverged" in jempp["notes"]
    assert "table1-quickstart-2-steps-jempp-1 diverged for good" in jempp["notes"]
    assert jempp["scores"]["divergences"] == 4 and jempp["scores"]["runs_lost"] == 1 and jempp["scores"]["fd_judge"] > 0
    assert jempp["seeds"] == 1 and len(jempp["origins"]) == 2
    assert all("1 and 2 seeds" in each["reason"] for each in found["orderings"] if "JEM++" in each["claim"])
    monkeypatch.setattr(reproduce, "run_training", None)
    again = reproduced(rjem, "--json", "--html", tmp_path / "page.html")
    assert again.code == 0, again.err
    assert json.loads(again.out) == found
    assert "Divergences (crosses): 4." in (tmp_path / "page.html").read_text()
    assert "jempp-1: " in (plan := reproduced(rjem, "--dry-run").err) and "; diverged" in plan


def test_a_run_with_other_settings_or_images_is_not_taken_over(rjem, own_home, quick_presets, tmp_path):
    assert reproduced(rjem, "--seeds", 1).code == 0
    run = own_home / "runs" / "table1-quickstart-2-steps-rjem-0"
    assert rjem("train", "--resume", run.name, "--steps", 4).code == 0
    for more in ((), ("--dry-run",)):
        outcome = reproduced(rjem, "--seeds", 1, *more)
        assert outcome.code == 2 and f"steps 4, but this table needs 2; remove {run}" in outcome.error_line()
    for folder, seed in (("one", 0), ("two", 1)):
        write_pets(tmp_path / folder / "pets", seed)
        made = ("--data", tmp_path / folder / "pets", "--seeds", 1, "--reference", "digits:train")
        outcome = reproduced(rjem, *made)
        assert outcome.code == (0 if folder == "one" else 1), outcome.err
    assert "was trained on other images than pets has now" in outcome.error_line()


def write_pets(folder, seed):
    """Class folders of digits."""
    digits = load_digits()
    for index in range(seed, 400 + seed):
        name = folder / str(int(digits.labels[index])) / f"{index}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        to_image(digits.pixels[index]).save(name)


def test_a_changed_judge_gives_new_scores(rjem, own_home, trained, tmp_path):
    rjem("generate", "tiny", "-n", 60, "-o", tmp_path / "made.npz")
    judge_file = tmp_path / "judge.safetensors"
    shutil.copy(trained_judge(rjem, own_home), judge_file)
    flags = (tmp_path / "made.npz", "--features", judge_file, "--is-splits", 2, "--allow-few")
    before = compared(rjem, *flags)["rows"][0]
    assert compared(rjem, *flags)["rows"][0] == before
    rjem("train", "--run", "third", *TINY_FLAGS, "--seed", 2)
    shutil.copy(own_home / "runs" / "third" / "checkpoints" / "step-00000003.safetensors", judge_file)
    after = compared(rjem, *flags)["rows"][0]
    assert after["scores"]["fd_judge"] != before["scores"]["fd_judge"]
    assert after["protocols"]["fd_judge"] != before["protocols"]["fd_judge"]


def test_selected_samples_are_not_ranked_with_others(rjem, own_home, trained, tmp_path):
    """EVALUATION: numbers with top-k selection are not those of samples."""
    for name in ("all", "best"):
        rjem("generate", "tiny", "-n", 60, "-o", tmp_path / name)
    meta = json.loads((tmp_path / "best" / "meta.json").read_text())
    (tmp_path / "best" / "meta.json").write_text(json.dumps(meta | {"selection": "top 60 of 900"}))
    found = compared(rjem, tmp_path / "all", tmp_path / "best", *QUICK)
    assert any("selection is none" in note and "top 60 of 900" in note for note in found["notes"])
    assert not any("fd_judge" in row["best"] for row in found["rows"])


def test_cached_seconds_keep_their_device(rjem, own_home, trained, monkeypatch):
    first = compared(rjem, "tiny", *QUICK)["rows"][0]
    device = first["protocols"]["seconds_per_1000"]["device"]
    monkeypatch.setattr(Runtime, "describe", lambda self: "another device")
    assert compared(rjem, "tiny", *QUICK)["rows"][0]["protocols"]["seconds_per_1000"]["device"] == device
    for timing in comparisons_dir().glob("samples-*.json"):
        timing.unlink()  # as after a kill between samples and time
    timed = compared(rjem, "tiny", *QUICK)["rows"][0]
    assert timed["scores"]["seconds_per_1000"] > 0
    assert timed["protocols"]["seconds_per_1000"]["device"] == "another device"


def test_damaged_caches_are_measured_again(rjem, own_home, trained):
    sound = compared(rjem, "tiny", *QUICK)["rows"][0]["scores"]
    for content in ("{}", '{"accuracy": "x"}', '{"seconds_per_1000": -1}', "[1]", "NaN", "1e999", ""):
        for path in comparisons_dir().iterdir():
            if path.suffix == ".json" or (path.suffix == ".npz" and not content):
                path.write_text(content)
        again = compared(rjem, "tiny", *QUICK)["rows"][0]["scores"]
        assert again.pop("seconds_per_1000") > 0
        assert again == {name: value for name, value in sound.items() if name in again}, content
        assert again.keys() | {"seconds_per_1000"} == sound.keys()


def test_links_and_devices_are_not_replaced(rjem, tmp_path):
    (tmp_path / "link.html").symlink_to(tmp_path / "report.html")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "link.html", tmp_path / "pipe"):
        outcome = rjem("compare", "--published", "--html", path)
        assert outcome.code == 2 and "is a link or a device" in outcome.error_line()
    assert (tmp_path / "link.html").is_symlink()
    outcome = rjem("compare", "--published", "--format", "md", "-o", tmp_path / "a", "--html", tmp_path / "a")
    assert outcome.code == 2 and "-o and --html both name" in outcome.error_line()


def test_an_untrained_checkpoint_is_a_row(rjem, own_home, trained):
    path = own_home / "runs" / "tiny" / "checkpoints" / "step-00000000.safetensors"
    for limit in (1, 2, 3):
        outcome = rjem("compare", path, "--mode", "none", "--limit", limit, "--steps", 1, "--json")
        assert outcome.code == 0, outcome.err
        assert 0 <= json.loads(outcome.out)["rows"][0]["scores"]["accuracy"] <= 1


@pytest.mark.slow
def test_two_calls_at_once_share_their_samples(rjem, own_home, trained):
    """The second waits for the samples of the first."""
    command = [sys.executable, "-m", "rjem_cli", "compare", "tiny", "--json", "--mode", "energy", "--samples", "60"]
    command += ["--limit", "20", "--steps", "1", "--features", str(trained_judge(rjem, own_home)), "--allow-few"]
    command += ["--is-splits", "2"]
    calls = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ended = [call.communicate(timeout=600) for call in calls]
    assert [call.returncode for call in calls] == [0, 0], ended
    one, other = (json.loads(out)["rows"] for out, _ in ended)
    assert one == other


def test_an_unfinished_run_has_a_note_and_a_finished_one_has_none(rjem, own_home, trained):
    checkpoints = own_home / "runs" / "tiny" / "checkpoints"
    test = ("--mode", "none", "--limit", 20, "--steps", 1)
    assert not any("unfinished" in note for note in compared(rjem, "tiny", *test)["notes"])
    (checkpoints / "step-00000003.safetensors").unlink()
    document = compared(rjem, checkpoints / "step-00000000.safetensors", *test)
    assert document["rows"][0]["notes"] == ["training is unfinished: step 0 of 3"]
    assert "training is unfinished: step 0 of 3" in document["notes"]


def test_a_renamed_checkpoint_is_a_row(rjem, own_home, trained):
    checkpoints = own_home / "runs" / "tiny" / "checkpoints"
    best = shutil.copy(checkpoints / "step-00000003.safetensors", checkpoints / "best.safetensors")
    row = compared(rjem, best, "--mode", "none", "--limit", 20, "--steps", 1)["rows"][0]
    assert row["scores"]["divergences"] == 0 and row["notes"] == []


def trained_judge(rjem, own_home):
    rjem("train", "--run", "judge", *TINY_FLAGS, "--seed", 1)
    return own_home / "runs" / "judge" / "checkpoints" / "step-00000003.safetensors"


def test_a_damaged_metrics_file_still_makes_a_report(rjem, own_home, trained, tmp_path):
    lines = [
        {"step": 1, "event": "divergence", "diverged_at": None, "reason": "x", "lr_scale": 1},
        {"step": 1, "event": "divergence", "diverged_at": [], "reason": "x", "lr_scale": 1},
        {"step": 2, "input_grad_norm": 1e308, "energy_data": -1e308},
        {"step": 3, "input_grad_norm": "much", "energy_data": [1]},
        {"step": True, "input_grad_norm": 1},
    ]
    metrics = own_home / "runs" / "tiny" / "metrics.jsonl"
    with metrics.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    outcome = rjem("compare", "tiny", "--mode", "none", "--limit", 20, "--steps", 1, "--html", tmp_path / "page.html")
    assert outcome.code == 0, outcome.err
    assert "<h2>Training</h2>" in (tmp_path / "page.html").read_text()
