"""Chains that share network passes go where each goes alone."""

import pytest
import torch
from torch import nn

from rjem_cli.engine.attacks.pgd import pgd
from rjem_cli.engine.models.energy import energy
from rjem_cli.engine.moves import together, walk
from rjem_cli.engine.sampling.sgld import sgld


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("pgd_steps", "sgld_steps"), [(5, 3), (3, 5), (4, 4), (0, 2), (2, 0), (0, 0)])
def test_an_attack_and_a_chain_end_where_each_does_alone(pgd_steps, sgld_steps, shared):
    """In as many passes as the longer one has where they share them, else in as many as both."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(6 * 36, 4)).double()
    images, starts = (torch.rand(count, 3, 8, 8, dtype=torch.float64) * 2 - 1 for count in (4, 6))
    labels = torch.arange(4)
    passes = []

    def counted(x):
        passes.append(len(x))
        return network(x)

    attack, chain = {"eps": 0.1, "steps": pgd_steps}, {"sgld_steps": sgld_steps, "step_size": 0.5, "grad_clip": 0.01}
    x_adv, x_q = together(counted, pgd(images, labels, **attack), sgld(energy, starts, **chain), shared=shared)
    torch.testing.assert_close(x_adv, walk(network, pgd(images, labels, **attack)), rtol=0, atol=1e-12)
    torch.testing.assert_close(x_q, walk(network, sgld(energy, starts, **chain)), rtol=0, atol=1e-12)
    assert len(passes) == (max(pgd_steps, sgld_steps) if shared else pgd_steps + sgld_steps)
    assert sum(passes) == 4 * pgd_steps + 6 * sgld_steps
    assert all(parameter.grad is None for parameter in network.parameters())
