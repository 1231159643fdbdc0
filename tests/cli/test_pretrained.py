"""The models that come with rjem are used by name, offline, in an empty home, and are never changed."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest

from rjem_cli import paths
from rjem_cli.engine.models.tensor_file import read_tensors, write_tensors

NAME = "cifar10-16"
FOLDER = paths.PRETRAINED_DIR / NAME
FEW = ("--sgld-steps", "1")


@pytest.fixture
def cats(rjem, tmp_path):
    combined = ("--mode", "combined", "--attack-steps", "1", *FEW)
    outcome = rjem("generate", NAME, "--class", "cat", *combined, "-n", "4", "-o", tmp_path / "cats")
    assert outcome.code == 0, outcome.err
    return tmp_path / "cats"


def test_every_command_takes_a_pretrained_model_offline_and_in_an_empty_home(rjem, cats, tmp_path):
    assert len([*cats.glob("0*.png")]) == 4
    own_images = ("--data", cats, "--split", "all", "--steps", "1")
    assert json.loads(rjem("attack", NAME, *own_images, "--json").out)["protocol"]["images"] == 4
    outcome = rjem("eval", NAME, *own_images, "--samples", "0", "--ood", "noise", "--json")
    assert json.loads(outcome.out)["protocol"]["images"] == 4, outcome.err
    chains = rjem("langevin", NAME, "--class", "cat", "-n", "2", "--sgld-steps", "1", "-o", tmp_path / "chains")
    assert chains.code == 0 and chains.out.count("cat") == 2
    assert f"checkpoint {FOLDER}" in rjem("compare", NAME, "--mode", "none", "--dry-run").err


def test_a_copy_of_the_checkpoint_makes_the_same_file(rjem, tmp_path):
    (checkpoint,) = paths.checkpoints_in(FOLDER)
    shutil.copy(checkpoint, tmp_path / "copy.safetensors")
    for model, name in ((NAME, "a.npz"), (tmp_path / "copy.safetensors", "b.npz")):
        assert rjem("generate", model, "-n", "4", "--mode", "combined", *FEW, "-o", tmp_path / name).code == 0
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_plan_says_that_the_data_set_is_missing(rjem, tmp_path):
    missing = "cifar10 is missing, and RJEM_OFFLINE forbids its download (170 MB)"
    assert missing in rjem("generate", NAME, "-n", "1", *FEW, "-o", tmp_path / "one").err.splitlines()[-1]
    for call in (("compare", NAME), ("compare", "--reproduce", "table1", "--scale", NAME), ("train", "--preset", NAME)):
        outcome = rjem(*call, "--dry-run")
        assert outcome.code == 0 and missing in outcome.err
    outcome = rjem("attack", NAME)
    assert outcome.code == 3 and outcome.error_line().count("--data") == 1


def test_the_checkpoint_is_small_finished_and_the_one_that_the_card_names(rjem):
    (checkpoint,) = paths.checkpoints_in(FOLDER)
    assert checkpoint.stat().st_size <= 3_000_000
    card = json.loads(rjem("runs", "show", NAME, "--json").out)["card"]
    assert card["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert {"data", "training", "time", "device", "licence"} <= card.keys()
    (run,) = json.loads(rjem("runs", "ls", "--json").out)["runs"]
    assert run["name"] == NAME and run["pretrained"] and run["finished"] and 0 < run["robust_accuracy"] < 1
    assert "Model card" not in rjem("runs", "ls").out and "\tpretrained\t" in rjem("runs", "ls").out
    assert all(str(value) in rjem("runs", "show", NAME).out for value in card.values())


def test_a_pretrained_model_is_not_resumed_replaced_or_removed(rjem):
    for name in (NAME, FOLDER):
        assert f"{NAME} is pretrained and cannot be resumed" in rjem("train", "--resume", name).error_line()
    outcome = rjem("train", "--run", NAME, "--dataset", "digits", "--steps", "1")
    assert outcome.code == 2 and "is the name of a pretrained model" in outcome.error_line()
    for agreed in ((), ("--yes",)):  # refused before the question
        outcome = rjem("runs", "rm", NAME, *agreed)
        assert outcome.code == 1 and f"{NAME} is a pretrained model" in outcome.error_line()
    assert paths.checkpoints_in(FOLDER)


def change_weights(checkpoint, card):
    tensors, description = read_tensors(checkpoint)
    name = next(iter(tensors))
    write_tensors(checkpoint, tensors | {name: tensors[name] + 1}, description)


def truncate(checkpoint, card):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])


def remove_card(checkpoint, card):
    card.unlink()


@pytest.mark.parametrize("damage", [change_weights, truncate, remove_card])
def test_a_damaged_model_is_refused(rjem, tmp_path, monkeypatch, damage):
    folder = shutil.copytree(FOLDER, tmp_path / "pretrained" / NAME)
    monkeypatch.setattr(paths, "PRETRAINED_DIR", tmp_path / "pretrained")
    assert rjem("generate", NAME, "-n", "1", *FEW, "-o", tmp_path / "a").code == 0
    damage(*paths.checkpoints_in(folder), folder / paths.CARD_FILE)
    outcome = rjem("generate", NAME, "-n", "1", *FEW, "-o", tmp_path / "b")
    assert outcome.code == 1 and "install rjem again" in outcome.error_line()
    assert rjem("runs", "ls").code == 0


def test_starts_that_a_pretrained_model_lacks_are_named(rjem):
    assert "comes without its buffer" in rjem("generate", NAME, "--init", "buffer").error_line()
    assert "RJEM_OFFLINE forbids the download" in rjem("generate", NAME, "--init", "data").error_line()


def test_a_run_of_the_same_name_comes_first(rjem, trained, own_home):
    (own_home / "runs" / "tiny").rename(own_home / "runs" / NAME)
    assert "digits" in rjem("generate", NAME, "-n", "1", "-o", own_home / "samples").err
    (run,) = json.loads(rjem("runs", "ls", "--json").out)["runs"]
    assert run["data"] == "digits" and not run["pretrained"]
    assert rjem("runs", "rm", NAME, "--yes").code == 0 and paths.checkpoints_in(FOLDER)


def test_a_folder_of_the_same_name_is_ambiguous_for_commands_that_take_images(rjem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    assert f"{NAME} is both a run and a path" in rjem("eval", NAME).error_line()
    assert rjem("generate", NAME, "-n", "1", *FEW).code == 0


def test_a_local_run_of_the_same_name_comes_before_the_pretrained_model(rjem, trained, own_home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.move(own_home / "runs" / "tiny", tmp_path / NAME)
    assert paths.find_checkpoint_or_images(NAME) == paths.find_checkpoint(NAME)
    assert "digits" in rjem("generate", NAME, "-n", "1").err


def test_a_folder_of_its_name_without_a_checkpoint_does_not_hide_a_pretrained_model(rjem, own_home):
    paths.checkpoints_dir(own_home / "runs" / NAME).mkdir(parents=True)
    (run,) = json.loads(rjem("runs", "ls", "--json").out)["runs"]
    assert run["name"] == NAME and run["pretrained"]


def test_without_runs_the_pretrained_model_is_named(rjem):
    for arguments in (("generate",), ("generate", "nope"), ("eval", "nope")):
        assert f"use a pretrained model: {NAME}" in rjem(*arguments).error_line()


def test_a_name_close_to_that_of_the_pretrained_model_is_corrected(rjem, trained):
    assert f"did you mean {NAME}?" in rjem("generate", "cifar-16").error_line()
