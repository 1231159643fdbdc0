"""rjem export: what was imported is written again byte for byte, and a run of rjem in the names of the project."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

import rjem_cli
from rjem_cli.engine.exchange.recognise import recognise
from rjem_cli.engine.exchange.torch_file import open_torch_file
from tests.foreign_networks import (
    State,
    doubled,
    jem_logits,
    jem_state,
    prefixed,
    resnet50_state,
    robustness_state,
    trades_state,
)

BUFFER = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
JEM, JEMPP = jem_state(batch_norm=False, colours=1), jem_state(colours=1)
TRADES = trades_state(width=1, colours=1)
MU = {"mu": torch.full((1, 1, 1, 1), 0.4), "sigma": torch.full((1, 1, 1, 1), 0.2)}
GREY = torch.full((1, 1, 1), 0.4), torch.full((1, 1, 1), 0.2)
MADRY = robustness_state(resnet50_state(colours=1), *GREY)
ROUND_TRIPS = {  # the file, the layout, and the tensors that come back
    "JEM": ({"model_state_dict": JEM, "replay_buffer": BUFFER}, "jem", JEM),
    "JEM++": ({"model_state_dict": JEMPP}, "jempp", JEMPP),
    "JEM++, yopo": ({"model_state_dict": doubled(JEMPP)}, "jempp", doubled(JEMPP)),
    "SADA-JEM": ({"model_state_dict": prefixed(JEMPP)}, "sadajem", JEMPP),
    "TRADES": (
        prefixed(trades_state(sub_block=True, width=1, colours=1)),
        "trades",
        trades_state(sub_block=True, width=1, colours=1),
    ),
    "MART": ({"state_dict": prefixed(TRADES)}, "trades", TRADES),
    "RobustBench": (prefixed(TRADES, "model.") | MU, "trades", TRADES | MU),
    "DAT": ({"ema_state_dict": prefixed(TRADES), "training_state": {}}, "dat", TRADES),
    "MadryLab": ({"model": MADRY}, "robustness", MADRY),
}


def tensors_in(content: State | dict[str, State]) -> State:
    return content.get("model_state_dict", content.get("model", content))


def assert_equal(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_every_tensor_of_an_imported_file_is_written_again(rjem, tmp_path, name):
    content, layout, expected = ROUND_TRIPS[name]
    torch.save(content, tmp_path / "in.pt")
    assert rjem("import", tmp_path / "in.pt", "--dataset", "digits", "--layout", layout, "--as", "run").code == 0
    outcome = rjem("export", "run", "--layout", layout, "-o", tmp_path / "out.pt")
    assert outcome.code == 0, outcome.err
    written = torch.load(tmp_path / "out.pt", weights_only=True)
    assert_equal(tensors_in(written), expected)
    if "replay_buffer" in content:
        assert torch.equal(written["replay_buffer"], BUFFER)


@pytest.fixture
def run(rjem):
    flags = "--dataset digits --depth 10 --width 1 --batch-size 16 --steps 2 --warmup-steps 1 --pgd-steps 1 "
    flags += "--sgld-steps 1 --buffer-size 16 --sample-steps 1 --attack-steps 1 --eval-limit 4 --run trained"
    assert rjem("train", *flags.split(), "--norm-layer", "batch").code == 0
    return rjem_cli.load("trained")


@pytest.mark.parametrize(
    ("layout", "keys"),
    [
        ("jem", {"energy_output.weight", "f.linear.weight", "class_output.bias"}),
        ("jempp", {"energy_output.weight", "class_output.bias"}),
    ],
)
def test_a_run_is_written_for_jem(rjem, run, tmp_path, layout, keys):
    assert rjem("export", "trained", "--layout", layout, "-o", tmp_path / "m.pt").code == 0
    written = torch.load(tmp_path / "m.pt", weights_only=True)
    assert keys <= written["model_state_dict"].keys() and written["replay_buffer"].shape == (16, 1, 8, 8)
    x = torch.rand(3, 1, 8, 8) * 2 - 1
    with torch.no_grad():
        assert torch.allclose(jem_logits(written["model_state_dict"], x), run(x), atol=1e-5)


def test_plain_files_have_the_names_of_rjem(rjem, run, tmp_path):
    for layout, read in (("torch", torch.load), ("safetensors", safetensors.torch.load_file)):
        assert rjem("export", "trained", "--layout", layout, "-o", tmp_path / layout).code == 0
        assert_equal(read(tmp_path / layout), run.checkpoint.model.state_dict())


def test_a_folder_for_the_hub_is_a_checkpoint_with_its_card(rjem, run, tmp_path):
    assert rjem("export", "trained", "--layout", "huggingface", "-o", tmp_path / "hub").code == 0
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert config["architecture"] == "WRN-10-1" and config["training"]["steps"] == 2
    assert "WRN-10-1" in (tmp_path / "hub" / "README.md").read_text()
    x = torch.rand(3, 1, 8, 8) * 2 - 1
    with torch.no_grad():
        assert torch.equal(rjem_cli.load(str(tmp_path / "hub" / "model.safetensors"))(x), run(x))


def test_the_code_that_loads_it_is_printed(rjem, run, tmp_path):
    outcome = rjem("export", "trained", "--layout", "torch", "-o", tmp_path / "m.pt")
    code = outcome.err.split("this loads it:")[1]
    scope: dict[str, object] = {}
    exec(code, scope)
    assert_equal(scope["tensors"], run.checkpoint.model.state_dict())
    assert outcome.out.strip() == str(tmp_path / "m.pt")


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["trained", "--layout", "trades"], 2, "it is a WRN-10-1, not --arch wrn-trades; give --layout jem or jempp"),
        (["absent"], 3, "no run or checkpoint named 'absent'"),
        (["trained", "-o", "taken.pt"], 2, "add --overwrite"),
    ],
)
def test_what_is_wrong_is_one_line(rjem, run, tmp_path, monkeypatch, arguments, code, part):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.pt").write_text("mine")
    outcome = rjem("export", *arguments)
    assert (outcome.code, part in outcome.error_line()) == (code, True), outcome.err
    assert (tmp_path / "taken.pt").read_text() == "mine"


def test_another_normalisation_is_refused(rjem, tmp_path):
    torch.save(TRADES, tmp_path / "m.pt")
    assert rjem("import", tmp_path / "m.pt", "--dataset", "digits", "--layout", "dat", "--as", "dat").code == 0
    line = rjem("export", "dat", "--layout", "trades", "-o", tmp_path / "x.pt").error_line()
    assert "normalises images in another way; give --layout dat" in line


def test_an_exported_run_is_recognised(rjem, run, tmp_path):
    assert rjem("export", "trained", "--layout", "jem", "-o", tmp_path / "m.pt").code == 0
    with open_torch_file(tmp_path / "m.pt") as file:
        network = recognise(file)
    assert_equal(network.weights, run.checkpoint.model.state_dict())
