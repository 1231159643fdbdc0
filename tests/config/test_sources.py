"""A value in YAML means what a flag with the same text means."""

from __future__ import annotations

import pytest

from rjem_cli.config.scoring import EvalConfig
from rjem_cli.config.sources import ResolvedConfig, parse_mapping
from rjem_cli.config.training import TrainConfig
from rjem_cli.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("lr: 1e-3", "lr", 1e-3),
        ("lr: 1E-3", "lr", 1e-3),
        ("flip: no", "flip", False),
        ("flip: Off", "flip", False),
        ("flip: yes", "flip", True),
        ("flip: true", "flip", True),
        ("compile: null", "compile", None),
        ("compile: ~", "compile", None),
        ("compile:", "compile", None),
        ("data: no", "data", "no"),
        ("data: 2026-01-01", "data", "2026-01-01"),
        ("data: 'null'", "data", "null"),
        ("seed: 010", "seed", 10),
        ("seed: 1_000", "seed", 1000),
        ("adv_eps: 8/255", "adv_eps", 16 / 255),
    ],
)
def test_plain_values_mean_what_they_say(text, field, value):
    found = getattr(TrainConfig.from_dict(parse_mapping(text, "a file")), field)
    assert found == value and type(found) is type(value)


def test_lists_are_lists():
    assert EvalConfig.from_dict(parse_mapping("eps: [0.1, 8/255]", "a file")).eps == (0.1, 16 / 255)


def test_what_is_printed_is_read_back():
    config = TrainConfig(data="no", lr=1e-5, flip=False, seed=2**40)
    assert TrainConfig.from_dict(parse_mapping(ResolvedConfig(config, {}).to_yaml(), "a file")) == config


def test_a_key_that_is_given_twice_is_an_error():
    with pytest.raises(ConfigError, match="a file: key lr is given twice"):
        parse_mapping("lr: 1\nlr: 2", "a file")
