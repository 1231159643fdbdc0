import pytest

from rjem_cli.config import GenerateConfig, TrainConfig
from rjem_cli.engine.sampling.generate import parse_classes, settle_plan
from rjem_cli.errors import ConfigError

NAMES = ("cat", "dog", "7")


def test_classes_by_name_number_or_all():
    assert parse_classes("all", NAMES) == [0, 1, 2]
    assert parse_classes("dog, 0", NAMES) == [1, 0]
    assert parse_classes("all", ("all", "some")) == [0, 1]  # the default means balanced, whatever a class is called
    assert parse_classes("7", NAMES) == [2]  # a name wins over a number


@pytest.mark.parametrize("text", ["cot", "3", "-1", "", "cat,,dog"])
def test_an_unknown_class_is_named(text):
    with pytest.raises(ConfigError, match="--class '.*' is unknown to this checkpoint"):
        parse_classes(text, NAMES)


def test_a_plan_is_the_checkpoints_unless_asked_otherwise():
    trained = TrainConfig(sample_steps=33, attack_eps=0.4, sgld_step_size=0.1, inner_steps=5, noise_std=0.02)
    plan = settle_plan(GenerateConfig(), trained)
    assert (plan.sgld_steps, plan.attack_eps, plan.sgld_step_size, plan.noise_std) == (33, 0.4, 0.5, 0.02)
    asked = settle_plan(GenerateConfig(sgld_steps=7, inner_steps=2, noise_std=0, mode="combined"), trained)
    assert (asked.sgld_steps, asked.sgld_step_size, asked.noise_std, asked.mode) == (7, 0.2, 0, "combined")
