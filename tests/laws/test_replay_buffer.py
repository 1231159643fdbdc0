"""The buffer restarts the configured share of chains and stores their ends at their own indices."""

import pytest
import torch

from rjem_cli.engine.models.prior import ClassGaussianPrior
from rjem_cli.engine.training.replay_buffer import ReplayBuffer

FROM_PRIOR = 0.5
PRIOR = ClassGaussianPrior(torch.full((3, 4), FROM_PRIOR), tuple(torch.zeros(4, 4) for _ in range(3)), (1, 2, 2))


def buffer(size: int, reinit_prob: float) -> ReplayBuffer:
    return ReplayBuffer(torch.full((size, 1, 2, 2), -1.0), PRIOR, reinit_prob)


def test_the_share_of_restarted_chains_is_as_configured():
    starts, _ = buffer(20_000, 0.05).sample(20_000, torch.Generator().manual_seed(0))
    share = (starts.flatten(1)[:, 0] == FROM_PRIOR).float().mean().item()
    assert share == pytest.approx(0.05, abs=0.006)


@pytest.mark.parametrize(("reinit_prob", "expected"), [(0.0, -1.0), (1.0, FROM_PRIOR)])
def test_no_chain_or_every_chain_restarts(reinit_prob, expected):
    starts, _ = buffer(64, reinit_prob).sample(64, torch.Generator().manual_seed(0))
    assert (starts == expected).all()


def test_the_ends_of_chains_replace_their_starts_and_nothing_else():
    chains = buffer(50, 0.0)
    starts, indices = chains.sample(8, torch.Generator().manual_seed(1))
    assert len(indices.unique()) == 8  # of an index drawn twice, one of two chains would be lost
    ends = torch.rand(starts.shape)
    chains.store(indices, ends)
    untouched = torch.ones(50, dtype=torch.bool)
    untouched[indices] = False
    assert torch.equal(chains.images[indices], ends)
    assert (chains.images[untouched] == -1).all()


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (0.25, 10), (1.0, 40)])
def test_a_reset_restarts_its_fraction_of_the_chains(fraction, count):
    chains = buffer(40, 0.0)
    chains.reset(fraction, torch.Generator().manual_seed(0))
    assert (chains.images == FROM_PRIOR).flatten(1).all(dim=1).sum() == count
