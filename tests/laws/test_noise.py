"""Philox gives the published numbers, and a sample's noise belongs to its seed alone."""

import pytest
import torch

from rjem_cli.engine.noise import CHAIN_STREAM, PRIOR_STREAM, philox, standard_normal, uniform


def words(*values: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor([value]) for value in values)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers_of_philox4x32_10(counter, key, expected):
    """The known-answer vectors that Salmon et al. publish with Random123."""
    assert tuple(int(word) for word in philox(words(*counter), words(*key))) == expected


def test_draws_are_standard_normal_and_uncorrelated():
    draws = standard_normal(torch.arange(2000), (7, 9), CHAIN_STREAM).double()
    assert abs(draws.mean()) < 0.01
    assert draws.var().item() == pytest.approx(1, abs=0.015)
    assert (draws**4).mean().item() == pytest.approx(3, abs=0.12)
    correlation = torch.corrcoef(draws.flatten(1).T) - torch.eye(63)
    assert correlation.abs().max() < 0.12
    neighbours = torch.corrcoef(torch.stack([draws[:-1].flatten(), draws[1:].flatten()]))[0, 1]
    assert abs(neighbours) < 0.01


def test_a_row_depends_on_its_seed_only():
    together = standard_normal(torch.arange(50, 60), (3, 5, 5), PRIOR_STREAM)
    for row, seed in enumerate(range(50, 60)):
        assert torch.equal(standard_normal(torch.tensor([seed]), (3, 5, 5), PRIOR_STREAM)[0], together[row])


def test_seeds_steps_and_streams_all_matter():
    def draw(seed=5, stream=CHAIN_STREAM, step=0):
        return standard_normal(torch.tensor([seed]), (1, 4, 4), stream, step)

    others = [draw(step=1), draw(seed=6), draw(seed=5 + 2**32), draw(stream=PRIOR_STREAM)]
    assert torch.equal(draw(), draw())
    assert all(not torch.equal(draw(), other) for other in others)


def test_uniform_draws_fill_the_unit_interval_without_zero():
    draws = uniform(torch.arange(3000), (5, 3), CHAIN_STREAM).double()
    assert draws.shape == (3000, 5, 3) and draws.min() > 0 and draws.max() <= 1
    assert draws.mean().item() == pytest.approx(1 / 2, abs=0.005)
    assert draws.var().item() == pytest.approx(1 / 12, abs=0.002)
