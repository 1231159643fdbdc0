"""A sample has the same bits however the work is split into batches, shards and calls."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rjem_cli.config.sampling import GenerateConfig
from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.data.load import load_digit_splits
from rjem_cli.engine.models.checkpoint import CheckpointInfo
from rjem_cli.engine.models.frozen import freeze
from rjem_cli.engine.models.prior import fit_prior
from rjem_cli.engine.networks.wide_resnet import WideResNet
from rjem_cli.engine.sampling.generate import generate
from rjem_cli.engine.sampling.pipeline import build_sampler, prior_start
from rjem_cli.engine.sampling.request import resolve_request
from rjem_cli.errors import RjemError

CPU = torch.device("cpu")
TRAINED = TrainConfig(noise_std=0.05, sample_steps=3, attack_steps=2)
INFO = CheckpointInfo(TRAINED, tuple("0123456789"), (1, 8, 8), "digits", 64 * "0", False, step=1)


@pytest.fixture(scope="module")
def start():
    return prior_start(fit_prior(load_digit_splits(0.1, shifted=False).train))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return freeze(WideResNet(1, num_classes=10, depth=10, width=1, norm="group"))


def request_samples(count=64, **options):
    return resolve_request(GenerateConfig(count=count, mode="combined", **options), INFO, "cpu")


def draw(start, model, skip=0, batch_size=64, **options):
    request = request_samples(**options)
    sampler = build_sampler(request.plan, start, model)
    batches = list(generate(sampler, request, skip=skip, batch_size=batch_size, device=CPU))
    expected = request.first + skip
    for batch in batches:
        assert batch.first == expected
        expected += len(batch.pixels)
    assert all(len(batch.pixels) == batch_size for batch in batches[:-1])
    return torch.cat([batch.pixels for batch in batches])


def test_any_batches_shards_and_resumed_calls_give_the_same_bytes(start, model):
    samples = draw(start, model)
    assert len(samples) == 64
    for batch_size in (1, 7, 16, 50, 1000):
        assert torch.equal(draw(start, model, batch_size=batch_size), samples)
    assert torch.equal(torch.cat([draw(start, model, shard=f"{index}/4") for index in range(4)]), samples)
    for skip in (1, 50, 63):
        assert torch.equal(draw(start, model, skip=skip), samples[skip:])


def test_skipped_blocks_are_not_computed(start):
    def count_samples(x, labels, seeds):
        calls.append(len(seeds))
        return x

    calls: list[int] = []
    sampler, request = start >> count_samples, request_samples()
    assert list(generate(sampler, request, skip=64, batch_size=7, device=CPU)) == [] and calls == []
    list(generate(sampler, request, skip=50, batch_size=7, device=CPU))
    assert calls == [50]  # one block


def test_more_samples_begin_with_the_same_ones_and_another_seed_shifts_them(start, model):
    samples = draw(start, model, classes="4")
    assert torch.equal(draw(start, model, classes="4", count=120)[:64], samples)
    assert torch.equal(draw(start, model, classes="4", seed=30, count=20), samples[30:50])


@pytest.mark.parametrize("skip", [0, 20])
def test_a_sample_that_is_not_finite_is_named(start, skip):
    def spoil(x, labels, seeds):
        return torch.where((seeds == 37).view(-1, 1, 1, 1), torch.nan, x)

    request = request_samples(count=40)
    with pytest.raises(RjemError, match="sample 37 is not finite"):
        list(generate(start >> spoil, request, skip=skip, batch_size=16, device=CPU))
    assert len(list(generate(start >> spoil, replace(request, count=37), skip=0, batch_size=16, device=CPU))) == 3
