"""A sample is the same to the last bit however the work is cut, and a sampler is a composition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rjem_cli.config import GenerateConfig, TrainConfig
from rjem_cli.engine.data.digits import load_digit_splits
from rjem_cli.engine.models.frozen import freeze
from rjem_cli.engine.models.prior import fit_prior
from rjem_cli.engine.models.wide_resnet import WideResNet
from rjem_cli.engine.sampling.generate import SampleBatch, generate, until
from rjem_cli.engine.sampling.pipeline import build_sampler, prior_start
from rjem_cli.engine.sampling.request import settle_request
from rjem_cli.errors import RjemError

NAMES = tuple("0123456789")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def start():
    return prior_start(fit_prior(load_digit_splits(0.1, shifted=False).train))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return freeze(WideResNet(1, num_classes=10, depth=10, width=1, norm="group"))


def draw(start, model, skip=0, batch_size=64, classes="all", count=64, seed=0, shard=None, block_size=None):
    trained = TrainConfig(noise_std=0.05, sample_steps=3, attack_steps=2)
    options = GenerateConfig(classes=classes, block_size=block_size)
    request = settle_request(options, trained, NAMES, "cpu", count=count, seed=seed, mode="combined", shard_text=shard)
    sampler = build_sampler(request.plan, start, model)
    batches = list(generate(sampler, request, skip=skip, batch_size=batch_size, device=CPU))
    expected = request.first + skip
    for batch in batches:
        assert batch.first == expected
        expected += len(batch.pixels)
    assert all(len(batch.pixels) == batch_size for batch in batches[:-1])
    return torch.cat([batch.pixels for batch in batches])


def test_the_same_bytes_for_any_batch_shard_and_resume(start, model):
    whole = draw(start, model)
    assert len(whole) == 64
    for batch_size in (1, 7, 16, 50, 1000):
        assert torch.equal(draw(start, model, batch_size=batch_size), whole)
    assert torch.equal(torch.cat([draw(start, model, shard=f"{index}/4") for index in range(4)]), whole)
    for skip in (1, 50, 63):
        assert torch.equal(draw(start, model, skip=skip), whole[skip:])


def test_what_is_there_already_costs_nothing(start, model):
    def counting(x, labels, seeds):
        calls.append(len(seeds))
        return x

    calls: list[int] = []
    request = settle_request(GenerateConfig(), TrainConfig(sample_steps=0), NAMES, "cpu", count=64, seed=0)
    assert list(generate(start >> counting, request, skip=64, batch_size=7, device=CPU)) == [] and calls == []
    list(generate(start >> counting, request, skip=50, batch_size=7, device=CPU))
    assert calls == [50]  # one block


def test_a_stop_keeps_the_batch_that_was_made(start, model):
    drawn = []

    def batches():
        for first in range(0, 50, 10):
            drawn.append(first)
            yield SampleBatch(first, torch.zeros(10, 1, 2, 2))

    assert [batch.first for batch in until(lambda: len(drawn) == 3, batches())] == [0, 10, 20] and len(drawn) == 3


def test_more_samples_begin_with_the_same_ones_and_a_seed_shifts_them(start, model):
    whole = draw(start, model, classes="4")
    assert torch.equal(draw(start, model, classes="4", count=120)[:64], whole)
    assert torch.equal(draw(start, model, classes="4", seed=30, count=20), whole[30:50])


def test_a_sample_that_is_not_finite_is_named(start, model):
    def spoil(x, labels, seeds):
        return torch.where((seeds == 37).view(-1, 1, 1, 1), torch.nan, x)

    request = settle_request(GenerateConfig(), TrainConfig(sample_steps=0), NAMES, "cpu", count=40, seed=0)
    with pytest.raises(RjemError, match="sample 37 is not finite"):
        list(generate(start >> spoil, request, skip=0, batch_size=16, device=CPU))
    assert len(list(generate(start >> spoil, replace(request, count=37), skip=0, batch_size=16, device=CPU))) == 3
