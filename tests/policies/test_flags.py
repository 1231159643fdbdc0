"""One declaration for each knob: a field of the config is a flag and a documented one."""

from dataclasses import fields

import pytest

from rjem_cli.config import AttackConfig, EvalConfig, GenerateConfig, LangevinConfig, TrainConfig
from rjem_cli.config.fields import flag_name


@pytest.mark.parametrize(
    ("command", "config_class"),
    [
        ("train", TrainConfig),
        ("attack", AttackConfig),
        ("langevin", LangevinConfig),
        ("generate", GenerateConfig),
        ("eval", EvalConfig),
    ],
)
def test_every_knob_is_a_flag_with_a_meaning(rjem_help, command, config_class):
    text = rjem_help(command)
    for option in fields(config_class):
        assert f"  {flag_name(option.name)} " in text.replace(",", " ").replace("-n ", "  ")
        assert option.metadata["help"][:20] in " ".join(text.split())


@pytest.fixture
def rjem_help(capsys):
    from rjem_cli.__main__ import main

    def run(command: str) -> str:
        assert main([command, "--help"]) == 0
        return capsys.readouterr().out

    return run
