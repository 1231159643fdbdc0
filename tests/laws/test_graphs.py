"""Passes replayed as CUDA graphs give the same bits as passes that are not, on a pretend CUDA device whose graphs
overwrite their results as real ones do."""

from __future__ import annotations

import pytest
import torch

from rjem_cli.config.training import ModelOptions
from rjem_cli.engine.attacks.apgd import apgd
from rjem_cli.engine.attacks.pgd import pgd
from rjem_cli.engine.gradients import value_and_grad
from rjem_cli.engine.models.energy import energy
from rjem_cli.engine.models.frozen import FrozenLogits
from rjem_cli.engine.models.graphs import EAGER_PASSES, MAX_GRAPHS
from rjem_cli.engine.models.wide_resnet import build_model, place
from rjem_cli.engine.sampling.sgld import sgld
from tests.pretend_cuda import PretendCuda

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture
def cuda():
    with PretendCuda() as device:
        yield device


@pytest.fixture(params=["batch", "group", "none"])
def model(request, cuda):
    torch.manual_seed(0)
    options = ModelOptions(depth=10, width=1, norm_layer=request.param)
    return place(build_model(options, 1, 4), torch.device("cuda"))


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0)).to("cuda")


def replays(record) -> int:
    return record.launches["graph"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_chains_and_attacks_have_the_same_bits(cuda, model, dtype):
    x, labels = images(6), torch.arange(6, device="cuda") % 4
    results = []
    for graphs in (False, True):
        frozen = FrozenLogits(model, dtype, graphs=graphs)
        with cuda.recording() as record:
            chain = sgld(frozen, x, steps=6, step_size=1.0)
            attacked = [attack(frozen, x, labels, eps=0.1, steps=8) for attack in (pgd, apgd)]
        assert bool(replays(record)) == graphs and record.syncs == []
        results.append([chain, *attacked])
    assert all(torch.equal(one, other) for one, other in zip(*results))


def test_results_of_a_pass_outlive_the_next_one(cuda, model):
    frozen, plain = FrozenLogits(model, graphs=True), FrozenLogits(model)
    for _ in range(EAGER_PASSES):
        value_and_grad(frozen, energy, images(5))
    batches = [images(5), -images(5)]
    kept = [value_and_grad(frozen, energy, x) for x in batches]
    for evaluation, x in zip(kept, batches):
        assert all(torch.equal(one, other) for one, other in zip(evaluation, value_and_grad(plain, energy, x)))


def test_a_replay_uses_the_weights_of_the_last_refresh(cuda, model):
    frozen, x = FrozenLogits(model, graphs=True), images(5)
    for _ in range(EAGER_PASSES + 1):
        value_and_grad(frozen, energy, x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    frozen.refresh(model)
    with cuda.recording() as record:
        found = value_and_grad(frozen, energy, x)
    assert replays(record) == 2  # forward and backward
    assert torch.equal(found.gradient, value_and_grad(FrozenLogits(model), energy, x).gradient)


def test_only_repeated_shapes_are_recorded_and_only_a_few(cuda, model):
    frozen = FrozenLogits(model, graphs=True)
    with cuda.recording() as record:
        for count in range(1, 9):
            for _ in range(EAGER_PASSES):
                value_and_grad(frozen, energy, images(count))
    assert replays(record) == 0
    for count in range(1, 9):
        value_and_grad(frozen, energy, images(count))
    assert len(frozen.replay.graphs) == MAX_GRAPHS


def test_passes_without_gradients_are_not_replayed(cuda, model):
    frozen, x = FrozenLogits(model, graphs=True), images(5)
    with cuda.recording() as record, torch.no_grad():
        for _ in range(2 * EAGER_PASSES):
            frozen(x)
    assert replays(record) == 0


def test_a_pass_that_cannot_be_recorded_runs_as_before(cuda, model, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fail)
    frozen, plain, x = FrozenLogits(model, graphs=True), FrozenLogits(model), images(5)
    for _ in range(2 * EAGER_PASSES):
        assert torch.equal(value_and_grad(frozen, energy, x).gradient, value_and_grad(plain, energy, x).gradient)


def test_forward_passes_outside_of_value_and_grad_are_not_replayed(cuda, model):
    """A graph keeps one pass, so two forward passes before a backward pass need their own."""
    frozen, plain = FrozenLogits(model, graphs=True), FrozenLogits(model)
    for _ in range(2 * EAGER_PASSES):
        value_and_grad(frozen, energy, images(5))
    gradients = []
    for network in (frozen, plain):
        x, other = images(5).requires_grad_(), (-images(5)).requires_grad_()
        (energy(network(x)) - energy(network(other))).sum().backward()
        gradients.append((x.grad, other.grad))
    assert all(torch.equal(one, other) for one, other in zip(*gradients))
