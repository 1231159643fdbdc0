"""Each test has its own RJEM_HOME and no network. Workers use one thread, and run commands in their own process. A
trained run and a judge are built once per worker."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
os.environ["OMP_WAIT_POLICY"] = "passive"  # processes that wait leave the cores to others

import numpy as np
import pytest

from rjem_cli.__main__ import main
from rjem_cli.engine.data.load import load_digits
from rjem_cli.engine.metrics import judge

TINY_FLAGS = (
    "--dataset digits --batch-size 16 --steps 3 --warmup-steps 2 --pgd-steps 2 --sgld-steps 2 --buffer-size 32 "
    "--sample-steps 2 --attack-steps 2 --log-every 1 --eval-limit 20"
).split()


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_home(monkeypatch, tmp_path / "rjem-home")
    return tmp_path / "rjem-home"


def use_home(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Use `home`, unset other rjem variables, forbid downloads."""
    for variable in [name for name in os.environ if name.startswith("RJEM_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("RJEM_HOME", str(home))
    monkeypatch.setenv("RJEM_OFFLINE", "1")


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
def rjem(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command in this process, as the console script does."""

    def run(*arguments: str) -> Outcome:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def shrink_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train judges for 30 steps only."""
    monkeypatch.setattr(judge, "FEWEST_STEPS", 30)
    monkeypatch.setattr(judge, "EPOCHS", 1)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A home with a run named `tiny` and a judge of digits; the run's summary, with the checkpoint's path."""
    home, printed = tmp_path_factory.mktemp("made-once"), io.StringIO()
    samples = home / "digits.npz"
    np.savez(samples, arr_0=load_digits().pixels[:60].permute(0, 2, 3, 1).numpy())
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.redirect_stdout(printed):
        use_home(monkeypatch, home)
        shrink_judge(monkeypatch)
        assert main(["train", "--run", "tiny", "--json", *TINY_FLAGS]) == 0
        summary = json.loads(printed.getvalue())
        scoring = ["--features", "judge", "--metrics", "is", "--is-splits", "1", "--reference", "digits"]
        assert main(["eval", str(samples), *scoring]) == 0
    return home, summary


def copy_parts(home: Path, target: Path, *parts: str) -> None:
    """Copy some parts of a home, with their times."""
    for part in parts:
        shutil.copytree(home / part, target / part, dirs_exist_ok=True)


@pytest.fixture
def trained(made_once: tuple[Path, dict[str, Any]], own_home: Path) -> dict[str, Any]:
    """A run named `tiny`; its summary, with the checkpoint's path."""
    home, summary = made_once
    copy_parts(home, own_home, "runs", "cache/priors")
    file = own_home / "runs" / "tiny" / "summary.json"
    file.write_text(file.read_text().replace(str(home), str(own_home)))
    found: dict[str, Any] = json.loads(json.dumps(summary).replace(str(home), str(own_home)))
    return found


@pytest.fixture
def quick_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judges are trained for 30 steps only."""
    shrink_judge(monkeypatch)


@pytest.fixture
def digits_judge(quick_judge: None, made_once: tuple[Path, dict[str, Any]], own_home: Path) -> None:
    """A judge of digits, with cached features of the training images."""
    copy_parts(made_once[0], own_home, "cache/judges", "cache/features")
