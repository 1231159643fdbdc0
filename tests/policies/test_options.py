"""Options that a command accepts have an effect."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

import rjem_cli
from rjem_cli.cli.options import CONFIG_CLASSES
from rjem_cli.config.common import DATASETS
from rjem_cli.config.fields import options
from rjem_cli.config.sampling import GenerateConfig
from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.data.downloads import DATASET_INFO
from rjem_cli.engine.data.load import SCIKIT_LEARN_SIDES
from rjem_cli.engine.sampling.request import resolve_plan

PACKAGE = Path(rjem_cli.__file__).parent
SOURCES = [path.read_text() for path in PACKAGE.rglob("*.py") if path.parent.name != "config"]
NAMES = sorted({option.name for config_class in CONFIG_CLASSES for option in options(config_class)})
PLAN_OPTIONS = {
    "sgld_steps": 7,
    "sgld_step_size": 0.3,
    "inner_steps": 3,
    "noise_std": 0.2,
    "langevin_noise": True,
    "temperature": 2.0,
    "attack_eps": 0.3,
    "attack_steps": 3,
    "contrast": 0.4,
    "attack_confidence": 0.9,
    "prior_temperature": 0.5,
}


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_read_by_a_command_or_the_engine(name):
    used = re.compile(rf'\.{name}\b|"{name}"|"--{name.replace("_", "-")}"')
    assert any(used.search(source) for source in SOURCES), f"{name} is declared in config/, but nothing reads it"


@pytest.mark.parametrize("name", PLAN_OPTIONS)
def test_every_option_of_chains_changes_the_plan(name):
    config, trained = GenerateConfig(mode="combined"), TrainConfig()
    changed = replace(config, **{name: PLAN_OPTIONS[name]})
    assert resolve_plan(changed, trained) != resolve_plan(config, trained)


def test_every_data_set_has_a_loader():
    assert set(DATASETS) == set(DATASET_INFO) | set(SCIKIT_LEARN_SIDES)
