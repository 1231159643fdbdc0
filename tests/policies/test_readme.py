"""The README's Python runs, and its commands have the flags that they use."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.split("#")[0].strip() for line in re.findall(r"^(?:rjem|\.venv/bin/rjem) .*$", README, re.MULTILINE)]
MY_MODELS = """
from torch import nn
def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


@pytest.fixture
def home_with_a_run(trained, own_home):
    """Named as the README's."""
    (own_home / "runs" / "tiny").rename(own_home / "runs" / "first")


def test_the_python_in_the_readme_runs(home_with_a_run):
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(code, names)
    assert names["x"].shape == (16, 1, 8, 8) and names["images"].abs().max() <= 1
    assert len(names["result"].success) == len(names["energies"]) == 16 and len(names["history"]) == 10
    again = names["flipped"](torch.tensor([3, 8]), torch.tensor([0, 1]))
    assert torch.equal(again, names["images"].flip(3))


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if re.match(r"rjem (generate|attack|langevin|eval) (first|--model)", c)]
)
def test_the_commands_of_the_readme_can_be_meant(home_with_a_run, command, tmp_path, monkeypatch):
    from rjem_cli.__main__ import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_models.py").write_text(MY_MODELS)
    monkeypatch.delitem(sys.modules, "my_models", raising=False)
    arguments = shlex.split(command.split("|")[0])[1:]
    assert main([*arguments, "--dry-run"]) == 0


def test_every_subcommand_is_in_the_readme():
    for name in ("train", "generate", "attack", "langevin", "eval", "compare", "runs", "cache", "env"):
        assert any(command.split()[1] == name for command in COMMANDS)
