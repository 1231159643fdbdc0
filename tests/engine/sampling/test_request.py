import pytest

from rjem_cli.config import GenerateConfig, TrainConfig
from rjem_cli.engine.data.images import parse_classes
from rjem_cli.engine.sampling.request import parse_shard, settle_plan, settle_request
from rjem_cli.errors import ConfigError

NAMES = ("cat", "dog", "7")


def settle(options, seed=0, **how):
    return settle_request(options, TrainConfig(), NAMES, "cpu", seed=seed, **how)


def test_classes_by_name_number_or_all():
    assert parse_classes("all", NAMES) == [0, 1, 2]
    assert parse_classes("dog, 0", NAMES) == [1, 0]
    assert parse_classes("all", ("all", "some")) == [0, 1]  # the default means balanced, whatever a class is called
    assert parse_classes("7", NAMES) == [2]  # a name wins over a number
    assert parse_classes("none", NAMES) == [0, 1, 2]  # what the starts of unconditional chains are drawn from


@pytest.mark.parametrize("text", ["cot", "3", "-1", "", "cat,,dog"])
def test_an_unknown_class_is_named(text):
    with pytest.raises(ConfigError, match="--class '.*' is unknown to this checkpoint"):
        parse_classes(text, NAMES)


def test_a_plan_is_the_checkpoints_unless_asked_otherwise():
    trained = TrainConfig(sample_steps=33, attack_eps=0.4, sgld_step_size=0.1, inner_steps=5, noise_std=0.02)
    plan = settle_plan(GenerateConfig(), trained)
    assert (plan.sgld_steps, plan.attack_eps, plan.sgld_step_size, plan.noise_std) == (33, 0.4, 0.5, 0.02)
    asked = settle_plan(GenerateConfig(sgld_steps=7, inner_steps=2, noise_std=0), trained, "combined")
    assert (asked.sgld_steps, asked.sgld_step_size, asked.noise_std, asked.mode) == (7, 0.2, 0, "combined")


def test_without_a_class_chains_follow_the_energy_of_x_for_the_papers_300_steps():
    plan = settle_plan(GenerateConfig(classes="none"), TrainConfig())
    assert (plan.conditional, plan.sgld_steps) == (False, 300)
    with pytest.raises(ConfigError, match="--class none has nothing to attack towards"):
        settle_plan(GenerateConfig(classes="none"), TrainConfig(), "combined")
    request = settle(GenerateConfig(classes="none"), count=3)
    assert request.row(2) == ("000002.png", -1, "none", 2)


@pytest.mark.parametrize("parts", [1, 3, 4, 7, 10])
def test_shards_are_disjoint_whole_and_nearly_equal(parts):
    def indices(index):
        request = settle(GenerateConfig(), count=10, shard_text=f"{index}/{parts}")
        return list(range(request.first, request.last))

    shards = [indices(index) for index in range(parts)]
    assert [index for shard in shards for index in shard] == list(range(10))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("text", ["4/4", "-1/4", "1", "a/b", "0/0", "1/2/3", "0,4"])
def test_a_shard_that_cannot_be_meant(text):
    with pytest.raises(ConfigError, match="give i/k"):
        parse_shard(text)


def test_more_shards_than_samples():
    with pytest.raises(ConfigError, match="3 samples do not make 4 parts"):
        settle(GenerateConfig(), count=3, shard_text="0/4")


def test_the_cost_counts_whole_blocks():
    assert settle(GenerateConfig(), count=1).computed == 50
    assert settle(GenerateConfig(), count=100).computed == 100
    assert settle(GenerateConfig(), count=100, seed=1).computed == 150
    assert settle(GenerateConfig(block_size=7), count=64).computed == 70
