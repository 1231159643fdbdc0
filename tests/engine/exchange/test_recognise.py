"""Files as other projects write them: the network is found, and its logits are those of the project's own forward."""

from __future__ import annotations

import argparse
import collections
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from rjem_cli.engine.exchange.recognise import ForeignNetwork, recognise
from rjem_cli.engine.exchange.torch_file import open_torch_file
from rjem_cli.engine.models.frozen import FrozenLogits
from rjem_cli.engine.networks.build import build_model
from rjem_cli.errors import DataError
from tests.foreign_networks import (
    doubled,
    jem_logits,
    jem_state,
    prefixed,
    resnet50_logits,
    resnet50_state,
    robustness_state,
    trades_logits,
    trades_state,
)

# of images in [0, 1], as the projects print them
DAT_MEAN, DAT_STD = (
    (0.4913997551666284, 0.48215855929893703, 0.4465309133731618),
    (
        0.24703225141799082,
        0.24348516474564,
        0.26158783926049628,
    ),
)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
JEM, JEMPP = jem_state(16, 2, batch_norm=False), jem_state(16, 2)
TRADES, RESNET50 = trades_state(16, 2, sub_block=True), resnet50_state()
BUFFER = torch.randn(50, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def channels(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values)[:, None, None]


def unit(x: Tensor) -> Tensor:
    return (x + 1) / 2


def normalised(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (unit(x) - channels(mean)) / channels(std)


class Case(NamedTuple):
    """`layout`: what is recognised. `logits`: of images in [-1, 1]."""

    layout: str
    saved: Any
    logits: Callable[[Tensor], Tensor]


def module_of(state: dict[str, Tensor]) -> nn.Module:
    """A whole network, whose class is not there when it is read."""
    root = nn.Module()
    for name, tensor in state.items():
        *path, last = name.split(".")
        part = root
        for step in path:
            if step not in part._modules:
                part.add_module(step, nn.Module())
            part = part._modules[step]
        if tensor.is_floating_point() and "running" not in last:
            part.register_parameter(last, nn.Parameter(tensor))
        else:
            part.register_buffer(last, tensor)
    return root


MU = {"mu": channels(CIFAR_MEAN)[None], "sigma": channels(CIFAR_STD)[None]}
DAT_FILE = {
    "model_state_dict": prefixed(trades_state(16, 2, seed=9)),
    "ema_state_dict": {"n_averaged": torch.tensor(7), **prefixed(TRADES)},
    "optimizer_state_dict": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": []},
    "training_state": {"epoch": 3, "best": np.float64(91.9)},
    "config": argparse.Namespace(lr=0.1),
}
MADRY_FILE = {"model": robustness_state(RESNET50, channels(CIFAR_MEAN), channels(CIFAR_STD)), "epoch": 110}
CASES = {
    "JEM": Case("jem", {"model_state_dict": JEM, "replay_buffer": BUFFER}, lambda x: jem_logits(JEM, x)),
    "old JEM": Case("jem", JEM, lambda x: jem_logits(JEM, x)),
    "JEM++": Case(
        "jempp", {"model_state_dict": doubled(JEMPP), "replay_buffer": BUFFER}, lambda x: jem_logits(JEMPP, x)
    ),
    "SADA-JEM": Case("jempp", {"model_state_dict": prefixed(JEMPP)}, lambda x: jem_logits(JEMPP, x)),
    "TRADES": Case("trades", prefixed(TRADES), lambda x: trades_logits(TRADES, unit(x))),
    "Carmon": Case(
        "trades",
        {"state_dict": prefixed(TRADES), "num_classes": 10, "normalize_input": False, "epoch": 200},
        lambda x: trades_logits(TRADES, unit(x)),
    ),
    "RobustBench": Case(
        "trades", {"last": prefixed(TRADES, "module.model.")}, lambda x: trades_logits(TRADES, unit(x))
    ),
    "RobustBench, mu and sigma": Case(
        "trades",
        prefixed(TRADES, "model.") | MU,
        lambda x: trades_logits(TRADES, normalised(x, CIFAR_MEAN, CIFAR_STD)),
    ),
    "RATIO": Case("trades", prefixed(TRADES, "module.module."), lambda x: trades_logits(TRADES, unit(x))),
    "DAT": Case("dat", DAT_FILE, lambda x: trades_logits(TRADES, normalised(x, DAT_MEAN, DAT_STD))),
    "MadryLab": Case(
        "robustness", MADRY_FILE, lambda x: resnet50_logits(RESNET50, normalised(x, CIFAR_MEAN, CIFAR_STD))
    ),
    "a whole module": Case("trades", {"net": module_of(TRADES)}, lambda x: trades_logits(TRADES, unit(x))),
    "an OrderedDict with metadata": Case("jem", collections.OrderedDict(JEM), lambda x: jem_logits(JEM, x)),
}


def read(path: Path, layout: str = "auto") -> ForeignNetwork:
    with open_torch_file(path) as file:
        return recognise(file, layout)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", CASES)
def test_the_logits_are_those_of_the_project(tmp_path, name, zipped):
    case, path = CASES[name], tmp_path / "model.pt"
    torch.save(case.saved, path, _use_new_zipfile_serialization=zipped)
    network = read(path)
    assert network.match.layout.name == case.layout
    model = build_model(network.match.options, 3, 10)
    model.load_state_dict(network.weights)
    x = torch.rand(4, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        expected = case.logits(x)
        tolerance = 1e-5 * expected.abs().max()
        assert (model.eval()(x) - expected).abs().max() < tolerance
        assert (FrozenLogits(model)(x) - expected).abs().max() < tolerance
        assert (expected[0] - expected[1]).abs().max() > 1000 * tolerance, "the logits must depend on the image"


def test_a_buffer_is_read_and_clamped(tmp_path):
    torch.save(CASES["JEM"].saved, tmp_path / "m.pt")
    buffer = read(tmp_path / "m.pt").buffer
    assert torch.equal(buffer, BUFFER.clamp(-1, 1))


def test_averaged_weights_are_preferred_and_the_others_named(tmp_path):
    torch.save(DAT_FILE, tmp_path / "m.pt")
    assert read(tmp_path / "m.pt").place == "ema_state_dict"


def test_unused_tensors_are_kept_as_they_were(tmp_path):
    torch.save(CASES["TRADES"].saved, tmp_path / "m.pt")
    unused = read(tmp_path / "m.pt").unused
    expected = {name: tensor for name, tensor in TRADES.items() if name.startswith("sub_block1.")}
    assert unused.keys() == expected.keys()
    assert all(torch.equal(unused[name], tensor) for name, tensor in expected.items())


def test_safetensors_are_read(tmp_path):
    safetensors.torch.save_file(JEM, tmp_path / "m.safetensors")
    network = read(tmp_path / "m.safetensors")
    assert torch.equal(network.weights["head.weight"], JEM["class_output.weight"])


def test_dat_is_a_layout_of_its_own_for_a_bare_file(tmp_path):
    torch.save(TRADES, tmp_path / "m.pth")
    assert torch.allclose(read(tmp_path / "m.pth", "dat").weights["normalizer.mean"], torch.tensor(DAT_MEAN))
    assert read(tmp_path / "m.pth").weights["normalizer.mean"].tolist() == [0, 0, 0]


def test_an_unknown_file_is_told_what_each_layout_missed(tmp_path):
    torch.save({"model": nn.Linear(3, 3).state_dict()}, tmp_path / "m.pt")
    with pytest.raises(DataError) as error:
        read(tmp_path / "m.pt")
    for part in ("jem: no f.conv1.weight", "trades: no conv1.weight", "robustness: no model.conv1.weight"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def changed(state: dict[str, Tensor], name: str, tensor: Tensor | None) -> dict[str, Tensor]:
    rest = {key: value for key, value in state.items() if key != name}
    return rest if tensor is None else rest | {name: tensor}


@pytest.mark.parametrize(
    ("saved", "reason"),
    [
        (
            changed(TRADES, "block3.layer.1.conv2.weight", None),
            "1 missing tensors, such as block3.layer.1.conv2.weight",
        ),
        (changed(TRADES, "block4.layer.0.conv1.weight", torch.ones(2)), "unknown tensors, such as block4"),
        (changed(TRADES, "fc.weight", torch.ones(10, 64)), "fc.weight is (10, 64), not (10, 128)"),
        (changed(TRADES, "block1.layer.0.conv1.weight", torch.ones(17, 16, 3, 3)), "no multiple of 16"),
        (changed(JEMPP, "f.bn1.running_mean", None), "layer norm"),
        (jem_state(16, 2, batch_norm=False) | {"f.bn1.loc": torch.ones(1)}, "ActNorm"),
        ({"replay_buffer": BUFFER, "model_state_dict": None}, "a replay buffer, but no network"),
        ({"epoch": 3}, "no tensors"),
        (changed(JEM, "class_output.bias", torch.full((10,), torch.nan)), "not finite"),
        (doubled(JEMPP) | {"f.layer_one.bias": torch.zeros(16)}, "should be equal, but differ"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_with_the_reason(tmp_path, saved, reason):
    torch.save(saved, tmp_path / "m.pt")
    with pytest.raises(DataError) as error:
        read(tmp_path / "m.pt")
    assert reason in str(error.value)


def test_half_precision_is_converted_and_said(tmp_path):
    torch.save(
        {name: part.half() if part.is_floating_point() else part for name, part in JEM.items()}, tmp_path / "m.pt"
    )
    network = read(tmp_path / "m.pt")
    assert network.weights["stem.weight"].dtype == torch.float32
    assert network.notes == ("converted to float32 from float16",)


def test_counters_may_be_absent_as_in_files_of_old_pytorch(tmp_path):
    torch.save({name: part for name, part in JEMPP.items() if "num_batches" not in name}, tmp_path / "m.pt")
    assert read(tmp_path / "m.pt").weights["norm.num_batches_tracked"] == 0
