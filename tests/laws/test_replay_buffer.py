"""The buffer restarts the share of chains that it was told to, and keeps what it is given."""

import pytest
import torch

from rjem_cli.engine.models.prior import ClassGaussianPrior
from rjem_cli.engine.training.replay_buffer import ReplayBuffer

FROM_PRIOR = 0.5
PRIOR = ClassGaussianPrior(torch.full((3, 4), FROM_PRIOR), tuple(torch.zeros(4, 4) for _ in range(3)), (1, 2, 2))


def buffer(size: int, reinit_prob: float) -> ReplayBuffer:
    return ReplayBuffer(torch.full((size, 1, 2, 2), -1.0), size, PRIOR, reinit_prob)


def test_the_share_of_restarted_chains_is_as_set():
    starts, _ = buffer(20_000, 0.05).draw(20_000, torch.Generator().manual_seed(0))
    share = (starts.flatten(1)[:, 0] == FROM_PRIOR).float().mean().item()
    assert share == pytest.approx(0.05, abs=0.006)


@pytest.mark.parametrize(("reinit_prob", "expected"), [(0.0, -1.0), (1.0, FROM_PRIOR)])
def test_no_chain_or_every_chain_restarts(reinit_prob, expected):
    starts, _ = buffer(64, reinit_prob).draw(64, torch.Generator().manual_seed(0))
    assert (starts == expected).all()


def test_chains_go_back_to_their_places():
    chains = buffer(50, 0.0)
    starts, held = chains.draw(8, torch.Generator().manual_seed(1))
    places = held.rows
    assert len(places.unique()) == 8  # a place drawn twice would keep one of two results
    stored = torch.rand(starts.shape)
    chains.store(held, stored)
    untouched = torch.ones(50, dtype=torch.bool)
    untouched[places] = False
    assert torch.equal(chains.images[places], stored)
    assert (chains.images[untouched] == -1).all()
