"""The frozen network computes what the network in eval mode computes."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rjem_cli.engine.gradients import value_and_grad
from rjem_cli.engine.models.energy import energy
from rjem_cli.engine.models.frozen import FrozenLogits, freeze
from rjem_cli.engine.networks.wide_resnet import WideResNet
from rjem_cli.engine.runtime import check_compiler
from rjem_cli.errors import AbsentError


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 12, 12), (3, 32, 32), (3, 17, 9)])
def test_freezing_changes_neither_the_output_nor_the_model(norm, channels, height, width):
    torch.manual_seed(0)
    model = WideResNet(channels, num_classes=4, depth=16, width=2, norm=norm)
    for _ in range(3):  # statistics unlike the initial ones
        model(torch.randn(8, channels, height, width) * 2 + 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frozen = freeze(model)
    x = torch.rand(5, channels, height, width) * 2 - 1
    torch.testing.assert_close(frozen(x), model.eval()(x), rtol=1e-4, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_logits_of_an_image_do_not_depend_on_its_batch():
    torch.manual_seed(0)
    model = WideResNet(1, num_classes=4, depth=10, width=1, norm="batch")
    x = torch.rand(6, 1, 8, 8)
    model(x)
    frozen = freeze(model)
    torch.testing.assert_close(frozen(x)[2:3], frozen(x[2:3]))


def trained_briefly(norm: str) -> WideResNet:
    torch.manual_seed(0)
    model = WideResNet(3, num_classes=10, depth=16, width=2, norm=norm)
    for _ in range(3):
        model(torch.randn(16, 3, 32, 32))
    return model


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_refreshed_copy_equals_a_new_one(norm):
    model = trained_briefly(norm)
    frozen = FrozenLogits(model)
    storage = [tensor.data_ptr() for tensor in frozen.network.state_dict().values()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    model(torch.randn(16, 3, 32, 32))
    x = torch.rand(4, 3, 32, 32) * 2 - 1
    assert torch.equal(frozen.refresh(model)(x), FrozenLogits(model)(x))
    assert [tensor.data_ptr() for tensor in frozen.network.state_dict().values()] == storage  # for compiled chains


def test_refreshing_copies_no_module(monkeypatch):
    """It runs in each training step, and a copy of WRN-28-10 takes longer than many a kernel."""
    model = trained_briefly("batch")
    frozen = FrozenLogits(model)
    monkeypatch.setattr(copy, "deepcopy", None)
    frozen.refresh(model)


class DoubledNorm(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Negated(nn.Module):
    """A parametrization."""

    def forward(self, weight):
        return -weight


class ReadsItsNorm(nn.Module):
    """Uses the statistics and the weight of its BatchNorm, which must stay a BatchNorm."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(x).mean((2, 3)) + self.norm.running_mean - self.norm.weight


def with_subclass(model):
    model.blocks[0].norm2 = DoubledNorm(32)


def with_hook(model):
    model.blocks[0].norm1.register_forward_hook(lambda module, inputs, output: 2 * output)


def with_pre_hook(model):
    model.norm.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))


def with_parametrized_norm(model):
    nn.utils.parametrize.register_parametrization(model.blocks[1].norm2, "weight", Negated())


def with_parametrized_convolution(model):
    nn.utils.parametrizations.weight_norm(model.blocks[1].conv1)


@pytest.mark.parametrize(
    "change", [with_subclass, with_hook, with_pre_hook, with_parametrized_norm, with_parametrized_convolution]
)
def test_only_a_plain_batch_norm_is_folded(change):
    """Subclasses, hooks and parametrizations compute more than BatchNorm."""
    model = trained_briefly("batch")
    change(model)
    x = torch.rand(2, 3, 12, 12) * 2 - 1
    expected = model.eval()(x)
    torch.testing.assert_close(FrozenLogits(model)(x), expected)
    torch.testing.assert_close(FrozenLogits(model, torch.bfloat16)(x), expected, rtol=0.1, atol=0.1)


def test_a_network_may_read_its_own_batch_norm():
    model = ReadsItsNorm()
    model(torch.randn(8, 3, 4, 4) + 1)
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(FrozenLogits(model)(x), model.eval()(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("orthogonal_map", ["matrix_exp", "cayley", "householder"])
def test_a_network_whose_weights_need_fp32_computes_in_half_precision(orthogonal_map, dtype):
    """PyTorch has no bf16 kernels for the last two maps."""
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.orthogonal(nn.Linear(12, 12), orthogonal_map=orthogonal_map)
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(12, 4))
    x = torch.rand(3, 12)
    exact, rounded = (value_and_grad(FrozenLogits(model, kind), energy, x) for kind in (torch.float32, dtype))
    torch.testing.assert_close(rounded.gradient, exact.gradient, rtol=0.05, atol=0.01)
    assert rounded.logits_BK.dtype == torch.float32 and layer.weight.dtype == torch.float32


class OldNorms(nn.Module):
    """PyTorch's old hooks, which compute a weight in each pass and store it as an attribute."""

    def __init__(self):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PyTorch now recommends parametrizations
            self.first = nn.utils.weight_norm(nn.Linear(12, 12))
            self.second = nn.utils.spectral_norm(nn.Linear(12, 4))

    def forward(self, x):
        return self.second(F.relu(self.first(x)))


def test_a_network_with_old_norms_is_frozen_too():
    torch.manual_seed(0)
    model = OldNorms()
    x = torch.rand(3, 12)
    model(x)  # from now on the computed weights are part of a graph
    torch.testing.assert_close(value_and_grad(FrozenLogits(model), energy, x).logits_BK, model.eval()(x))


@pytest.mark.parametrize(("norm", "tolerance"), [("batch", 0.12), ("group", 0.2), ("none", 0.12)])
@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, 1), (torch.float16, 1 / 3)])
def test_in_half_precision_gradients_point_where_those_in_fp32_do(norm, tolerance, dtype, share):
    """Their difference is a small share of their length, and E(x) agrees to its third digit. fp16 has three more bits
    than bf16."""
    model = trained_briefly(norm)
    x = torch.rand(8, 3, 32, 32) * 2 - 1
    exact, rounded = (value_and_grad(FrozenLogits(model, kind), energy, x) for kind in (torch.float32, dtype))
    tolerance *= share
    assert rounded.gradient.dtype == rounded.value_B.dtype == torch.float32
    assert (rounded.gradient - exact.gradient).norm() <= tolerance * exact.gradient.norm()
    torch.testing.assert_close(rounded.value_B, exact.value_B, rtol=5e-3, atol=5e-3)


def test_in_fp16_gradients_do_not_vanish_where_the_network_is_confident():
    """A cross-entropy of 1e-4 has gradients of 1e-9 in x. The smallest positive number of fp16 is 6e-8."""
    model, margin = trained_briefly("batch"), 12.0
    x = torch.rand(8, 3, 32, 32) * 2 - 1
    labels = torch.zeros(8, dtype=torch.long)

    def loss(logits_BK):
        return F.cross_entropy(logits_BK + margin * F.one_hot(labels, 10), labels, reduction="none")

    exact, rounded = (value_and_grad(FrozenLogits(model, kind), loss, x) for kind in (torch.float32, torch.half))
    assert exact.value_B.max() < 1e-3
    assert (rounded.gradient - exact.gradient).norm() <= 0.1 * exact.gradient.norm()


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_activations_in_place_do_not_change_their_input(norm):
    """Without a norm, the shortcut needs the input of the activation."""
    model = trained_briefly(norm)
    x = torch.rand(2, 3, 32, 32)
    original = x.clone()
    frozen = freeze(model)
    assert torch.equal(frozen(x), frozen(x)) and torch.equal(x, original)
    hidden = torch.randn(2, 16, 8, 8)
    original = hidden.clone()
    model.blocks[0](hidden)
    frozen.blocks[0](hidden)
    assert torch.equal(hidden, original)


@pytest.fixture(scope="module")
def compiles():
    """torch.compile needs a compiler."""
    try:
        check_compiler(torch.device("cpu"))
    except AbsentError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_compiled_passes_equal_uncompiled_ones(compiles):
    """Also after the network changes, and for another batch size."""
    torch.manual_seed(0)
    model = WideResNet(1, num_classes=4, depth=10, width=1, norm="batch")
    model(torch.randn(16, 1, 12, 12))
    compiled, plain = FrozenLogits(model, compiled=True), FrozenLogits(model)
    for count in (6, 6, 3):
        x = torch.rand(count, 1, 12, 12) * 2 - 1
        actual, expected = value_and_grad(compiled, energy, x), value_and_grad(plain, energy, x)
        torch.testing.assert_close(actual.gradient, expected.gradient, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(actual.value_B, expected.value_B, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        compiled.refresh(model)
        plain.refresh(model)
