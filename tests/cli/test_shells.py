"""TAB in the real shells: commands, flags, presets, runs, classes and data sets."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
COMPLETIONS = Path(__file__).parents[2] / "completions"
LIMIT = 60.0  # seconds that a busy machine may take
CASES = [
    ("rjem tra", "rjem train"),
    ("rjem cache pru", "rjem cache prune"),
    ("rjem train --adv-e", "rjem train --adv-eps"),
    ("rjem train --preset quic", "rjem train --preset quickstart"),
    ("rjem train --dataset shi", "rjem train --dataset shifted-digits"),
    ("rjem generate ti", "rjem generate tiny"),
    ("rjem generate tiny --class no", "rjem generate tiny --class none"),
    ("rjem generate tiny --class 3,al", "rjem generate tiny --class 3,all"),
    ("rjem runs rm ti", "rjem runs rm tiny"),
    ("rjem cache rm pri", "rjem cache rm priors"),
    ("rjem completion fi", "rjem completion fish"),
]


def needs(shell):
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not installed")


@pytest.fixture
def environment(tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HOME": str(tmp_path), "ZDOTDIR": str(tmp_path), "TERM": "dumb", "LC_ALL": "C"}


class Terminal:
    """A shell at a terminal."""

    def __init__(self, command, environment):
        self.shown = b""
        self.pid, self.handle = pty.fork()
        if self.pid == 0:
            os.execvpe(command[0], command, environment)

    def type(self, keys):
        self.shown = b""
        os.write(self.handle, keys.encode())

    def until(self, text):
        end = time.monotonic() + LIMIT
        while text.encode() not in self.shown:
            assert time.monotonic() < end, self.shown
            if select.select([self.handle], [], [], 0.1)[0]:
                self.shown += os.read(self.handle, 65536)

    def close(self):
        os.close(self.handle)
        os.waitpid(self.pid, 0)


@pytest.fixture
def terminal(environment):
    opened = []

    def start(*command):
        opened.append(Terminal(command, environment))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


@needs("zsh")
@pytest.mark.parametrize("loaded", ["sourced", "in fpath"])
def test_zsh(terminal, trained, loaded):
    """Also on the first TAB, where the file in fpath has only just defined its function."""
    zsh = terminal("zsh", "-f", "-i")
    first = f"fpath=({COMPLETIONS} $fpath)" if loaded == "in fpath" else ":"
    then = "source <(rjem completion zsh)" if loaded == "sourced" else ":"
    zsh.type(f"PS1='$ '; {first}; autoload -U compinit; compinit -u -D; {then}; echo ready-$((1 + 1))\n")
    zsh.until("ready-2")
    for line, completed in CASES:
        zsh.type(f"\x15{line}\t")  # Ctrl-U: a new line
        zsh.until(completed)


@needs("fish")
def test_fish(environment, trained):
    for line, completed in CASES:
        script = f"source {COMPLETIONS / 'rjem.fish'}; complete -C '{line}'"
        told = subprocess.run(
            ["fish", "--no-config", "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        assert completed.rpartition(" ")[2] in [option.split("\t")[0] for option in told.stdout.splitlines()]


@needs("bash")
def test_bash(terminal, trained):
    bash = terminal("bash", "--norc", "--noprofile", "-i")
    bash.type(f"PS1='$ '; source {COMPLETIONS / 'rjem.bash'}; echo ready-$((1 + 1))\n")
    bash.until("ready-2")
    for line, completed in CASES:
        bash.type(f"\x15{line}\t")
        bash.until(completed)
