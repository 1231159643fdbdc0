"""Each network of --arch: its shapes, its frozen copy, and its training."""

from __future__ import annotations

import json

import pytest
import torch

from rjem_cli.config.common import ARCHITECTURES
from rjem_cli.config.training import ModelOptions, TrainConfig
from rjem_cli.engine.gradients import value_and_grad
from rjem_cli.engine.models.energy import energy
from rjem_cli.engine.models.frozen import FrozenLogits
from rjem_cli.engine.networks.build import build_model, feature_count
from rjem_cli.errors import OptionError


def options(arch: str) -> ModelOptions:
    return ModelOptions(arch=arch, depth=10, width=1)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 33)])
def test_logits_are_the_head_of_the_features(arch, channels, side):
    model = build_model(options(arch), channels, 7).eval()
    x = torch.rand(2, channels, side, side) * 2 - 1
    with torch.no_grad():
        features = model.features(x)
        assert features.shape == (2, feature_count(options(arch)))
        assert torch.equal(model.head(features), model(x))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_frozen_copy_follows_its_network_only_when_refreshed(arch):
    torch.manual_seed(0)
    model = build_model(options(arch), 1, 4)
    frozen, x = FrozenLogits(model), torch.rand(4, 1, 16, 16) * 2 - 1
    model.train()(x)  # moves the statistics
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
        expected = model.eval()(x)
        tolerance = 1e-5 * expected.abs().max()
        assert (frozen(x) - expected).abs().max() > tolerance
        assert (frozen.refresh(model)(x) - expected).abs().max() < tolerance


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_gradient_of_the_energy_agrees_with_finite_differences(arch):
    torch.manual_seed(0)
    model = build_model(options(arch), 1, 4).double().eval()
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64) * 2 - 1
    direction = torch.randn_like(x)
    _, _, gradient = value_and_grad(model, energy, x)
    with torch.no_grad():
        h = 1e-6
        slope = (energy(model(x + h * direction)) - energy(model(x - h * direction))) / (2 * h)
    assert torch.allclose((gradient * direction).sum(), slope.squeeze(), rtol=1e-5, atol=1e-9)


def test_only_the_wide_resnet_of_jempp_has_other_norms():
    with pytest.raises(OptionError, match="batch norm only"):
        TrainConfig(arch="wrn-trades", norm_layer="group")


def test_a_resnet50_has_no_depth_to_check():
    assert TrainConfig(arch="resnet50", depth=11).architecture == "ResNet-50"


@pytest.mark.parametrize(
    "arch", [pytest.param(arch, marks=pytest.mark.slow if arch == "resnet50" else []) for arch in ARCHITECTURES[1:]]
)
def test_it_is_trained_resumed_and_sampled(rjem, arch, tmp_path):
    flags = "--dataset digits --depth 10 --width 1 --norm-layer batch --batch-size 16 --warmup-steps 2 --pgd-steps 1"
    flags += " --sgld-steps 1 --buffer-size 16 --sample-steps 1 --attack-steps 1 --eval-limit 4 --run other"
    outcome = rjem("train", *flags.split(), "--arch", arch, "--steps", "1")
    assert outcome.code == 0, outcome.err
    assert TrainConfig(arch=arch, depth=10, width=1).architecture in outcome.err
    assert rjem("train", "--resume", "other", "--steps", "2").code == 0
    assert "--arch" in rjem("train", "--resume", "other", "--arch", "wrn", "--steps", "3").error_line()
    assert rjem("generate", "other", "-n", "2", "--sgld-steps", "1", "-o", tmp_path / "x.npz").code == 0
    shown = json.loads(rjem("runs", "show", "other", "--json").out)
    assert shown["config"]["arch"] == arch
