"""Chains, attacks, their starts and the replay buffer never make the host wait for the device.

They run on PyTorch's meta device, which has shapes but no numbers: reading a number raises. Copies from the host to
the device are not covered: the code marks them as non_blocking.
"""

from __future__ import annotations

import pytest
import torch

from rjem_cli.engine.attacks.apgd import apgd
from rjem_cli.engine.attacks.pgd import pgd, random_start
from rjem_cli.engine.models.frozen import FrozenLogits
from rjem_cli.engine.models.prior import ClassGaussianPrior
from rjem_cli.engine.models.wide_resnet import WideResNet
from rjem_cli.engine.noise import CHAIN_STREAM, standard_normal
from rjem_cli.engine.sampling.pipeline import contrast, langevin, noise_start, prior_start, targeted_pgd
from rjem_cli.engine.sampling.sgld import sgld
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


@pytest.mark.parametrize("ball", ["linf", "l2"])
@pytest.mark.parametrize("attack", [pgd, apgd])
def test_an_attack_from_a_random_start(network, attack, ball):
    seeds, labels = torch.arange(4, device=META), torch.zeros(4, dtype=torch.long, device=META)
    start = random_start(images(4), seeds, 0.1, ball)
    x_adv = attack(network, images(4), labels, eps=0.1, steps=3, norm=ball, start=start)
    assert (x_adv.shape, x_adv.device) == ((4, *SHAPE), META)


def test_a_chain(network):
    seeds = torch.arange(6, device=META)
    x_q = sgld(
        network,
        images(6),
        steps=2,
        step_size=1.0,
        noise_std=0.1,
        noise=lambda step, x: standard_normal(seeds, SHAPE, CHAIN_STREAM, step),
    )
    assert (x_q.shape, x_q.device) == ((6, *SHAPE), META)


def test_a_sampler_with_labels_on_the_host(network, prior):
    stages = targeted_pgd(network, eps=0.5, steps=2) >> contrast(0.7) >> langevin(network, steps=2, noise_std=0.1)
    labels, seeds = torch.arange(8) % CLASSES, torch.arange(8, device=META)
    for start in (prior_start(prior), noise_start(SHAPE)):
        assert (start >> stages)(labels, seeds).shape == (8, *SHAPE)


def test_the_replay_buffer(prior):
    buffer = ReplayBuffer(images(20), prior, reinit_prob=0.5)
    starts, indices = buffer.sample(8, torch.Generator().manual_seed(0))
    buffer.store(indices, starts)
    buffer.reset(0.5, torch.Generator().manual_seed(1))
    assert starts.device == META == indices.device
