"""Chains, attacks, their starts and the replay buffer never make the host wait for the device.

They run on PyTorch's meta device, which holds shapes and no numbers: whoever asked it for one would raise.
What it cannot show are copies from host to device that wait: those are asked for as non_blocking.
"""

from __future__ import annotations

import pytest
import torch

from rjem_cli.engine.models.energy import energy
from rjem_cli.engine.models.frozen import FrozenLogits
from rjem_cli.engine.models.prior import ClassGaussianPrior
from rjem_cli.engine.models.wide_resnet import WideResNet
from rjem_cli.engine.sampling.pipeline import (
    contrast,
    langevin,
    noise_start,
    pgd,
    prior_start,
    sgld,
    targeted_pgd,
    together,
)
from rjem_cli.engine.training.replay_buffer import ReplayBuffer

META, SHAPE, CLASSES = torch.device("meta"), (3, 8, 8), 4


@pytest.fixture(params=["batch", "group"])
def norm(request):
    return request.param


@pytest.fixture(params=[torch.bfloat16, torch.float16])
def network(request, norm):
    return FrozenLogits(WideResNet(3, CLASSES, 10, 1, norm).to(META), request.param)


@pytest.fixture(params=[5, 192], ids=["low rank", "Cholesky"])
def prior(request):
    factors = tuple(torch.zeros(192, request.param, device=META) for _ in range(CLASSES))
    return ClassGaussianPrior(torch.zeros(CLASSES, 192, device=META), factors, SHAPE)


def images(count: int) -> torch.Tensor:
    return torch.zeros(count, *SHAPE, device=META)


def test_the_device_has_no_numbers():
    with pytest.raises(RuntimeError):
        images(1).sum().item()
    with pytest.raises(RuntimeError):
        images(1).nonzero()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_and_a_chain(network, norm):
    attack = pgd(images(4), torch.zeros(4, dtype=torch.long, device=META), eps=0.1, steps=3, norm=norm)
    chain = sgld(energy, images(6), sgld_steps=2, step_size=1.0, noise_std=0.1, noise=lambda step, x: x)
    x_adv, x_q = together(network, attack, chain)
    assert (x_adv.shape, x_q.shape, x_q.device) == ((4, *SHAPE), (6, *SHAPE), META)


def test_a_whole_sampler_with_labels_on_the_host(network, prior):
    moved = targeted_pgd(network, eps=0.5, steps=2) >> contrast(0.7) >> langevin(network, steps=2, noise_std=0.1)
    labels, seeds = torch.arange(8) % CLASSES, torch.arange(8, device=META)
    for start in (prior_start(prior), noise_start(SHAPE)):
        assert (start >> moved)(labels, seeds).shape == (8, *SHAPE)


def test_the_replay_buffer(prior):
    buffer = ReplayBuffer(images(20), 20, prior, reinit_prob=0.5)
    starts, held = buffer.draw(8, torch.Generator().manual_seed(0))
    buffer.store(held, starts)
    buffer.redraw(0.5, torch.Generator().manual_seed(1))
    assert starts.device == META == held.rows.device
