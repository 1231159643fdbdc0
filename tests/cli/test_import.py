"""rjem import: a run of another project's checkpoint, on which every command works."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

import rjem_cli
from rjem_cli.engine.models.checkpoint import state_path
from rjem_cli.engine.models.tensor_file import read_tensors
from rjem_cli.paths import runs_dir
from tests.foreign_networks import doubled, jem_state, prefixed, resnet50_state, robustness_state, trades_state

BUFFER = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def jem_file(tmp_path):
    path = tmp_path / "CIFAR10_MODEL.pt"
    torch.save({"model_state_dict": doubled(jem_state(colours=1)), "replay_buffer": BUFFER}, path)
    return path


@pytest.fixture
def trades_file(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"state_dict": prefixed(trades_state(width=1, colours=1)), "epoch": 76}, path)
    return path


def test_a_run_is_made_and_says_where_it_came_from(rjem, jem_file):
    outcome = rjem("import", jem_file, "--dataset", "digits", "--as", "jem")
    assert outcome.code == 0, outcome.err
    assert "layout jempp" in outcome.err and "replay buffer: 40 images" in outcome.err
    assert outcome.out.splitlines()[-1].endswith("jem/checkpoints/step-00000001.safetensors")
    assert {"accuracy", "E(x) of data", "E(x) of chains"} <= {line.split("\t")[0] for line in outcome.out.splitlines()}
    shown = json.loads(rjem("runs", "show", "jem", "--json").out)
    origin = shown["summary"]["origin"]
    assert origin["file"] == "CIFAR10_MODEL.pt" and origin["layout"] == "jempp" and len(origin["sha256"]) == 64
    assert shown["config"]["depth"] == "10" and shown["config"]["arch"] == "wrn"


def test_the_result_is_one_json_document(rjem, jem_file, tmp_path):
    document = json.loads(rjem("import", jem_file, "--dataset", "digits", "--as", "jem", "--json").out)
    assert document["checkpoint"].endswith("step-00000001.safetensors") and document["test_accuracy"]["of"] == 359
    document = json.loads(rjem("export", "jem", "--layout", "jempp", "-o", tmp_path / "x.pt", "--json").out)
    assert document["file"] == str(tmp_path / "x.pt") and "load_state_dict" in document["loader"]


def test_the_name_of_the_file_is_the_default_name(rjem, jem_file):
    assert rjem("import", jem_file, "--dataset", "digits").code == 0
    assert (runs_dir() / "CIFAR10_MODEL").is_dir()
    assert "already exists" in rjem("import", jem_file, "--dataset", "digits").error_line()


def test_every_command_works_on_imported_networks(rjem, jem_file, trades_file, tmp_path):
    for file, name in ((jem_file, "jem"), (trades_file, "trades")):
        assert rjem("import", file, "--dataset", "digits", "--as", name).code == 0
    for name in ("jem", "trades"):
        for command in (
            ["generate", name, "-n", "10", "--sgld-steps", "2", "-o", str(tmp_path / f"{name}.npz")],
            ["attack", name, "--limit", "10", "--steps", "2", "--eps", "0.1"],
            ["langevin", name, "--sgld-steps", "2", "-n", "2", "-o", str(tmp_path / f"chains-{name}")],
            ["eval", name, "--limit", "10", "--steps", "1", "--samples", "0"],
        ):
            outcome = rjem(*command)
            assert outcome.code == 0, (command, outcome.err)
    chains = rjem("langevin", "jem", "--init", "buffer", "--sgld-steps", "2", "-n", "2", "-o", str(tmp_path / "buffer"))
    assert chains.code == 0, chains.err


def test_statistics_are_recomputed_on_request(rjem, jem_file):
    outcome = rjem("import", jem_file, "--dataset", "digits", "--as", "jem", "--recompute-statistics")
    names = [line.split("\t")[0] for line in outcome.out.splitlines()]
    assert names.index("accuracy before") < names.index("accuracy")


@pytest.mark.slow
def test_resnet50_is_imported(rjem, tmp_path):
    mean, std = torch.full((1, 1, 1), 0.3), torch.full((1, 1, 1), 0.4)
    torch.save({"model": robustness_state(resnet50_state(colours=1), mean, std)}, tmp_path / "m.pt")
    assert rjem("import", tmp_path / "m.pt", "--dataset", "digits", "--as", "madry").code == 0
    assert rjem("attack", "madry", "--limit", "4", "--steps", "1", "--eps", "0.1").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["absent.pt"], 3, "absent.pt does not exist"),
        (["jem", "--dataset", "digits", "--layout", "trades"], 1, "trades: no conv1.weight"),
        (["jem"], 3, "cifar10"),
        (["jem", "--dataset", "digits", "--as", "../x"], 2, "plain name"),
        (["jem", "--dataset", "digits", "--as", "cifar10-16"], 2, "pretrained"),
        (["jem", "--dataset", "digits", "--data", "x"], 2, "exclude"),
        (["jem", "--layout", "foolbox"], 2, "choose from auto, jem"),
    ],
)
def test_what_is_wrong_is_one_line(rjem, jem_file, arguments, code, part):
    outcome = rjem("import", *(str(jem_file) if word == "jem" else word for word in arguments))
    assert (outcome.code, part in outcome.error_line()) == (code, True), outcome.err
    assert not list(runs_dir().glob("*/checkpoints"))


def test_the_images_must_have_the_networks_classes_and_channels(rjem, tmp_path):
    torch.save(jem_state(classes=7), tmp_path / "m.pt")
    line = rjem("import", tmp_path / "m.pt", "--dataset", "digits").error_line()
    assert "7 classes and 3 channels, digits has 10 and 1" in line


def test_a_dry_run_writes_nothing(rjem, jem_file):
    assert rjem("import", jem_file, "--dataset", "digits", "--dry-run").code == 0
    assert not runs_dir().exists() or not list(runs_dir().iterdir())


FINE_TUNING = "--steps 2 --batch-size 16 --warmup-steps 1 --pgd-steps 1 --sgld-steps 1 --buffer-size 32 --lr 1e-9"
FINE_TUNING += " --sample-steps 1 --attack-steps 1 --eval-limit 4 --weight-decay 0 --ema-decay 0"


def test_an_imported_run_cannot_be_resumed_but_fine_tuned(rjem, jem_file):
    assert rjem("import", jem_file, "--dataset", "digits", "--as", "jem").code == 0
    line = rjem("train", "--resume", "jem", "--steps", "4").error_line()
    assert "was imported and cannot be resumed; fine-tune it: rjem train --init-from jem" in line
    outcome = rjem("train", "--init-from", "jem", "--run", "tuned", *FINE_TUNING.split())
    assert outcome.code == 0, outcome.err
    before, after = (rjem_cli.load(name) for name in ("jem", "tuned"))
    assert (after.info.origin["layout"], after.info.origin["sha256"]) == ("rjem", before.checkpoint.sha256)
    assert after.info.data_name == "digits"
    for ours, theirs in zip(before.checkpoint.model.parameters(), after.checkpoint.model.parameters()):
        assert torch.allclose(ours, theirs, atol=1e-5), "a learning rate of 1e-9 changes nothing"


def test_fine_tuning_starts_from_the_chains_and_keeps_its_origin(rjem, jem_file):
    assert rjem("import", jem_file, "--dataset", "digits", "--as", "jem").code == 0
    flags = [*FINE_TUNING.split(), "--reinit-prob", "0", "--sgld-step-size", "1e-12", "--inner-steps", "1"]
    assert rjem("train", "--init-from", "jem", "--run", "tuned", *flags).code == 0
    checkpoint = rjem_cli.load("tuned").checkpoint
    assert torch.allclose(read_tensors(state_path(checkpoint.path))[0]["buffer"], BUFFER[:32], atol=1e-6)
    assert rjem("train", "--resume", "tuned", "--steps", "3").code == 0
    assert rjem_cli.load("tuned").info.origin["layout"] == "rjem"


def test_a_resumed_run_does_not_start_again_from_another(rjem, jem_file):
    assert rjem("import", jem_file, "--dataset", "digits", "--as", "jem").code == 0
    first = ("train", "--init-from", "jem", "--run", "tuned", "--resume", "auto", *FINE_TUNING.split())
    assert rjem(*first).code == 0 and rjem(*first).code == 0
    line = rjem("train", "--init-from", "jem", "--resume", "tuned").error_line()
    assert "give one of them" in line


def test_a_buffer_of_other_images_is_left_out(rjem, tmp_path):
    torch.save(
        {"model_state_dict": jem_state(colours=1), "replay_buffer": torch.zeros(4, 1, 28, 28)}, tmp_path / "m.pt"
    )
    outcome = rjem("import", tmp_path / "m.pt", "--dataset", "digits", "--as", "jem")
    assert outcome.code == 0 and "left out the replay buffer" in outcome.err
    assert "has no buffer" in rjem("langevin", "jem", "--init", "buffer", "-n", "1", "-o", tmp_path / "c").error_line()


def test_fine_tuning_keeps_the_network(rjem, jem_file):
    assert rjem("import", jem_file, "--dataset", "digits", "--as", "jem").code == 0
    line = rjem("train", "--init-from", "jem", "--depth", "16", "--run", "tuned").error_line()
    assert line == "rjem: --depth 16: jem has 10; leave it out"
    assert "no run or checkpoint named 'nope'" in rjem("train", "--init-from", "nope").error_line()


@pytest.mark.skipif(importlib.util.find_spec("pyautoattack") is None, reason="needs pyautoattack")
def test_imported_networks_and_a_run_stand_in_one_table_with_autoattack(rjem, jem_file, trades_file):
    for file, name in ((jem_file, "jem"), (trades_file, "trades")):
        assert rjem("import", file, "--dataset", "digits", "--as", name).code == 0
    assert rjem("train", "--run", "ours", "--preset", "quickstart", *FINE_TUNING.split()).code == 0
    flags = ("--mode", "none", "--standard", "--limit", "4", "--steps", "2", "--eps", "0.3")
    outcome = rjem("compare", "jem", "trades", "ours", *flags, "--format", "json")
    assert outcome.code == 0, outcome.err
    rows = json.loads(outcome.out)["rows"]
    assert [row["name"] for row in rows] == ["jem", "trades", "ours"]
    for row in rows:
        scores = row["scores"]
        assert 0 <= scores["standard_accuracy"] <= scores["robust_accuracy"] <= scores["accuracy"]
