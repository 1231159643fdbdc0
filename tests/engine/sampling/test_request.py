"""A request is the checkpoint's own way to sample, changed by the options that are set."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rjem_cli.config.sampling import GenerateConfig
from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.data.images import parse_classes
from rjem_cli.engine.models.checkpoint import CheckpointInfo
from rjem_cli.engine.sampling.request import parse_shard, resolve_plan, resolve_request
from rjem_cli.errors import ConfigError

NAMES = ("cat", "dog", "7")


def resolve(**options):
    info = CheckpointInfo(TrainConfig(), NAMES, (3, 8, 8), "pets", 64 * "0", False, step=1)
    return resolve_request(GenerateConfig(**options), info, "cpu")


def test_classes_are_given_by_name_or_number_or_all():
    assert parse_classes("all", NAMES) == [0, 1, 2]
    assert parse_classes("dog, 0", NAMES) == [1, 0]
    assert parse_classes("all", ("all", "some")) == [0, 1]  # `all` means all, even if a class has that name
    assert parse_classes("7", NAMES) == [2]  # a name wins over a number
    assert parse_classes("none", NAMES) == [0, 1, 2]  # unconditional chains start from all classes


def test_a_class_whose_name_is_a_number_or_has_a_comma():
    assert parse_classes("4, 07", ("2", "4", "07")) == [1, 2]
    for number in ("0", "1", "7"):
        with pytest.raises(ConfigError, match=f"--class '{number}' is unknown"):
            parse_classes(number, ("2", "4", "07"))
    assert parse_classes("goose, grey", ("goose, grey", "owl")) == [0]
    assert parse_classes('owl, "goose, grey"', ("goose, grey", "owl")) == [1, 0]
    assert parse_classes("A\u0308ffchen", ("Äffchen", "owl")) == [0]


@pytest.mark.parametrize("text", ["cot", "3", "-1", "", "cat,,dog"])
def test_an_unknown_class_is_named(text):
    with pytest.raises(ConfigError, match="--class '.*' is unknown"):
        parse_classes(text, NAMES)


def test_a_plan_is_the_checkpoints_own_where_no_option_is_set():
    trained = TrainConfig(sample_steps=33, attack_eps=0.4, sgld_step_size=0.1, inner_steps=5, noise_std=0.02)
    plan = resolve_plan(GenerateConfig(), trained)
    assert (plan.sgld_steps, plan.attack_eps, plan.sgld.step_size, plan.sgld.noise_std) == (33, 0.4, 0.5, 0.02)
    plan = resolve_plan(GenerateConfig(sgld_steps=7, inner_steps=2, noise_std=0, mode="combined"), trained)
    assert (plan.sgld_steps, plan.sgld.step_size, plan.sgld.noise_std, plan.mode) == (7, 0.2, 0, "combined")


def test_paper_samples_as_the_paper_does_unless_an_option_is_set():
    tuned = TrainConfig(
        attack_eps=0.1,
        attack_steps=5,
        attack_confidence=0.9,
        contrast=0.9,
        prior_temperature=0.8,
        sample_steps=20,
        unconditional_steps=20,
    )
    paper = resolve_plan(GenerateConfig(mode="combined"), TrainConfig())
    assert (paper.attack_eps, paper.attack_steps, paper.sgld_steps) == (0.5, 20, 50)
    assert resolve_plan(GenerateConfig(mode="combined", paper=True), tuned) == paper
    assert resolve_plan(GenerateConfig(mode="combined", paper=True, sgld_steps=7), tuned) == replace(
        paper, sgld_steps=7
    )


def test_without_a_class_chains_follow_the_energy_of_x_for_the_papers_300_steps():
    plan = resolve_plan(GenerateConfig(classes="none"), TrainConfig())
    assert (plan.conditional, plan.sgld_steps) == (False, 300)
    with pytest.raises(ConfigError, match="--class none has no class to attack towards"):
        resolve_plan(GenerateConfig(classes="none", mode="combined"), TrainConfig())
    assert resolve(classes="none", count=3).row(2) == ("000002.png", -1, "none", 2)


@pytest.mark.parametrize("shards", [1, 3, 4, 7, 10])
def test_shards_cover_all_samples_once_and_differ_by_one_at_most(shards):
    parts = [resolve(count=10, shard=f"{index}/{shards}").indices().tolist() for index in range(shards)]
    assert [index for part in parts for index in part] == list(range(10))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["4/4", "-1/4", "1", "a/b", "0/0", "1/2/3", "0,4"])
def test_an_invalid_shard_is_refused(text):
    with pytest.raises(ConfigError, match="give i/k"):
        parse_shard(text)


def test_more_shards_than_samples_are_refused():
    with pytest.raises(ConfigError, match="3 samples cannot be split into 4"):
        resolve(count=3, shard="0/4")


def test_the_cost_counts_complete_blocks_aligned_to_the_seed():
    assert resolve(count=1).block_count == 1
    assert resolve(count=100).block_count == 2
    assert resolve(count=100, seed=1).block_count == 3
    assert resolve(block_size=7, count=64).block_count == 10
