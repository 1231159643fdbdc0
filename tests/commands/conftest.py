from __future__ import annotations

import json
from typing import NamedTuple

import pytest

from rjem_cli.__main__ import main

TINY_FLAGS = (
    "--dataset digits --batch-size 16 --steps 3 --warmup-steps 2 --pgd-steps 2 --sgld-steps 2 --buffer-size 32 "
    "--sample-steps 2 --attack-steps 2 --log-every 1 --eval-limit 20"
).split()


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    def error_line(self) -> str:
        """The one line of a known error; anything else on stderr after the talk is a failure of the test."""
        lines = [line for line in self.err.splitlines() if line.startswith("rjem: ")]
        assert len(lines) == 1 and lines[0] == self.err.splitlines()[-1], self.err
        assert "Traceback" not in self.err
        return lines[0]


@pytest.fixture
def rjem(capsys):
    """Run a command in this process, as the console script does."""

    def run(*arguments: str) -> Outcome:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def trained(rjem):
    """A run named `tiny`; its summary, with the checkpoint's path."""
    outcome = rjem("train", "--run", "tiny", "--json", *TINY_FLAGS)
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)
