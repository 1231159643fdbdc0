"""Each option is declared once: a field of a config class is a documented flag."""

import pytest

from rjem_cli.config.fields import options
from rjem_cli.config.sampling import GenerateConfig, LangevinConfig
from rjem_cli.config.scoring import AttackConfig, CompareConfig, EvalConfig
from rjem_cli.config.training import TrainConfig


@pytest.mark.parametrize(
    ("command", "config_class"),
    [
        ("train", TrainConfig),
        ("attack", AttackConfig),
        ("langevin", LangevinConfig),
        ("generate", GenerateConfig),
        ("eval", EvalConfig),
        ("compare", CompareConfig),
    ],
)
def test_every_option_is_a_documented_flag(rjem_help, command, config_class):
    text = rjem_help(command)
    for option in options(config_class):
        assert f"  {option.flag} " in text.replace(",", " ").replace("-n ", "  ")
        assert option.help[:20] in " ".join(text.split())


@pytest.fixture
def rjem_help(capsys):
    from rjem_cli.__main__ import main

    def run(command: str) -> str:
        assert main([command, "--help"]) == 0
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("flags", [["--help"], ["-h"], ["-qh"]])
def test_the_help_of_train_shows_the_values_that_the_command_line_would_use(capsys, flags):
    from rjem_cli.__main__ import main

    assert main(["train", "--dataset", "cifar10", "--lr", "0.25", *flags]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Peak learning rate. [0.25]" in text and "[cifar10-small]" in text
    assert main(["train", "--lr", "fast", *flags]) == 0  # the preset for embedded data
    assert "Peak learning rate. [0.002]" in " ".join(capsys.readouterr().out.split())
