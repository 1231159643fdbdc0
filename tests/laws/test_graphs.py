"""Steps replayed as CUDA graphs give the same bits as steps that are not, on a pretend CUDA device whose graphs
overwrite their results as real ones do."""

from __future__ import annotations

import gc
import weakref
from functools import partial

import pytest
import torch

from rjem_cli.config.training import ModelOptions
from rjem_cli.engine.attacks.apgd import apgd
from rjem_cli.engine.attacks.pgd import cross_entropy_until, pgd
from rjem_cli.engine.gradients import gradient_step, run_step, value_and_grad
from rjem_cli.engine.models.energy import energy, joint_energy
from rjem_cli.engine.models.frozen import FrozenLogits
from rjem_cli.engine.models.graphs import EAGER_RUNS, MAX_GRAPHS
from rjem_cli.engine.networks.build import build_model, place
from rjem_cli.engine.sampling.sgld import sgld
from tests.pretend_cuda import PretendCuda

STEPS = EAGER_RUNS + 3
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
            chain = sgld(frozen, x, steps=STEPS, step_size=1.0)
            attacked = [attack(frozen, x, labels, eps=0.1, steps=STEPS) for attack in (pgd, apgd)]
        assert bool(replays(record)) == graphs and record.syncs == []
        results.append([chain, *attacked])
    assert all(torch.equal(one, other) for one, other in zip(*results))


EVALUATE = partial(gradient_step, objective=energy)


def test_results_of_a_step_outlive_the_next_one(cuda, model):
    frozen, plain = FrozenLogits(model, graphs=True), FrozenLogits(model)
    for _ in range(EAGER_RUNS):
        run_step(EVALUATE, frozen, images(5))
    batches = [images(5), -images(5)]
    kept = [run_step(EVALUATE, frozen, x) for x in batches]
    for evaluation, x in zip(kept, batches):
        assert all(torch.equal(one, other) for one, other in zip(evaluation, value_and_grad(plain, energy, x)))


def test_a_replay_uses_the_weights_of_the_last_refresh(cuda, model):
    frozen, x = FrozenLogits(model, graphs=True), images(5)
    for _ in range(EAGER_RUNS + 1):
        run_step(EVALUATE, frozen, x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    frozen.refresh(model)
    with cuda.recording() as record:
        found = run_step(EVALUATE, frozen, x)[2]
    assert replays(record) == 1
    assert torch.equal(found, value_and_grad(FrozenLogits(model), energy, x).gradient)


def test_each_argument_of_a_step_has_its_effect(cuda, model):
    """Labels, centers and noise are not those of the recording, and other numbers need another recording."""
    frozen, plain = FrozenLogits(model, graphs=True), FrozenLogits(model)
    draws = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)).to("cuda")
    for sign, eps, confidence, noise_std in ((1, 0.1, 0.9, 0.1), (-1, 0.2, 0.5, 0.2), (1, 0.2, 0.9, 0.2)):
        x, labels = sign * images(6), (torch.arange(6, device="cuda") + sign) % 4
        loss = partial(cross_entropy_until, confidence=confidence)
        attack = partial(pgd, center=x, labels_B=labels, eps=eps, steps=STEPS, targeted=True, loss=loss, norm="l2")
        chain = partial(sgld, x=x, labels_B=labels, energy_fn=joint_energy, steps=STEPS, step_size=1.0)
        noisy = partial(chain, noise_std=noise_std, noise=lambda step, x, sign=sign: sign * draws)
        for move in (attack, chain, noisy):
            with cuda.recording() as record:
                found = move(frozen)
            assert replays(record) > 0 and torch.equal(found, move(plain))


def test_an_attack_from_which_images_leave_is_the_same(cuda, model):
    def drop(state):
        return torch.arange(len(state.x) - 1, device="cuda") if state.step == EAGER_RUNS + 1 else None

    x, labels = images(6), torch.arange(6, device="cuda") % 4
    networks = FrozenLogits(model, graphs=True), FrozenLogits(model)
    for attack in (pgd, apgd):
        found, expected = (attack(network, x, labels, eps=0.1, steps=STEPS, callback=drop) for network in networks)
        assert len(found) == 5 and torch.equal(found, expected)


def test_only_repeated_shapes_are_recorded_and_the_oldest_graphs_are_dropped(cuda, model):
    frozen, counts = FrozenLogits(model, graphs=True), range(1, MAX_GRAPHS + 3)
    with cuda.recording() as record:
        for count in counts:
            for _ in range(EAGER_RUNS):
                run_step(EVALUATE, frozen, images(count))
    assert replays(record) == 0
    for count in (*counts, 3):  # 1 and 2 are the oldest when the last two are recorded; 3 is used again
        run_step(EVALUATE, frozen, images(count))
    kept = [key[1][0][0] for key in frozen.graphs.graphs]
    assert kept == [*range(4, MAX_GRAPHS + 3), 3]


def test_a_step_that_waits_for_the_device_is_not_recorded_and_runs_as_before(cuda, model):
    def waiting_energy(logits_BK):
        return energy(logits_BK) * float(logits_BK.mean() < 100)

    frozen, plain, x = FrozenLogits(model, graphs=True), FrozenLogits(model), images(5)
    step = partial(gradient_step, objective=waiting_energy)
    for _ in range(2 * EAGER_RUNS):
        assert torch.equal(run_step(step, frozen, x)[2], value_and_grad(plain, energy, x).gradient)
    assert not frozen.graphs.graphs


def test_a_step_with_a_closure_is_not_recorded(cuda, model):
    """What the closure holds may change."""
    scale = 1.0
    frozen, plain, x = FrozenLogits(model, graphs=True), FrozenLogits(model), images(5)

    def scaled_energy(logits_BK):
        return scale * energy(logits_BK)

    for scale in range(2 * EAGER_RUNS):  # noqa: B007 (the closure uses it)
        found, expected = (
            sgld(network, x, energy_fn=scaled_energy, steps=1, step_size=1.0) for network in (frozen, plain)
        )
        assert torch.equal(found, expected)


def test_a_step_that_holds_a_tensor_is_not_recorded(cuda, model):
    """Each chain would count as another step."""
    frozen, x = FrozenLogits(model, graphs=True), images(5)
    labels = torch.zeros(5, dtype=torch.long, device=x.device)
    for _ in range(2 * EAGER_RUNS):
        sgld(frozen, x, energy_fn=partial(joint_energy, labels_B=labels), steps=1, step_size=1.0)
    assert not frozen.graphs.graphs and not frozen.graphs.runs


def test_forward_passes_outside_of_steps_are_not_replayed(cuda, model):
    """Two forward passes before a backward pass need memory of their own."""
    frozen, plain = FrozenLogits(model, graphs=True), FrozenLogits(model)
    for _ in range(EAGER_RUNS + 1):
        run_step(EVALUATE, frozen, images(5))
    gradients = []
    with cuda.recording() as record:
        for network in (frozen, plain):
            x, other = images(5).requires_grad_(), (-images(5)).requires_grad_()
            (energy(network(x)) - energy(network(other))).sum().backward()
            gradients.append((x.grad, other.grad))
    assert frozen.graphs.graphs and replays(record) == 0
    assert all(torch.equal(one, other) for one, other in zip(*gradients))


def test_graphs_are_freed_before_a_batch_is_called_too_large(cuda, model):
    """So that the caller halves a batch only if it does not fit without graphs either."""
    frozen, x = FrozenLogits(model, graphs=True), images(6)
    for _ in range(EAGER_RUNS + 1):
        run_step(EVALUATE, frozen, images(5))
    assert frozen.graphs.graphs
    cuda.fail_next("convolution")
    found = run_step(EVALUATE, frozen, x)[2]
    assert torch.equal(found, value_and_grad(FrozenLogits(model), energy, x).gradient) and not frozen.graphs.graphs
    cuda.fail_next("convolution")
    with pytest.raises(RuntimeError, match="out of memory"):
        run_step(EVALUATE, frozen, x)


def test_a_recording_that_does_not_fit_into_memory_is_left_out(cuda, model):
    frozen, plain, x = FrozenLogits(model, graphs=True), FrozenLogits(model), images(5)
    for number in range(EAGER_RUNS + 2):
        if number == EAGER_RUNS:
            cuda.fail_next("convolution")
        assert torch.equal(run_step(EVALUATE, frozen, x)[2], value_and_grad(plain, energy, x).gradient)
    assert not frozen.graphs.graphs


def test_graphs_are_recorded_on_the_device_of_the_images():
    with PretendCuda(device_count=2) as cuda:
        torch.manual_seed(0)
        model = place(build_model(ModelOptions(depth=10, width=1), 1, 4), torch.device("cuda:1"))
        x = images(5).to("cuda:1")
        chains = [sgld(FrozenLogits(model, graphs=graphs), x, steps=STEPS, step_size=1.0) for graphs in (True, False)]
        assert cuda.current == 0 and chains[0].device == torch.device("cuda:1") and torch.equal(*chains)


def test_a_network_and_its_graphs_are_freed_without_the_collector(cuda, model):
    """They hold memory of the GPU."""
    frozen = FrozenLogits(model, graphs=True)
    sgld(frozen, images(5), steps=EAGER_RUNS + 1, step_size=1.0)
    (graph,) = (weakref.ref(step.graph) for step in frozen.graphs.graphs.values())
    gc.disable()
    try:
        del frozen
        assert graph() is None
    finally:
        gc.enable()
