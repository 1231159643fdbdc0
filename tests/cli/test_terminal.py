"""On a terminal, tables and bars fit its width, in colours unless NO_COLOR is set."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios

import pytest

from rjem_cli.cli.training_output import LABELS
from tests.conftest import TINY_FLAGS

pytestmark = pytest.mark.slow
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # moves of the cursor, colours
COLOUR = re.compile(r"\x1b\[[0-9;]*\b(3[0-7]|38|9[0-7])\b[0-9;]*m")


def on_terminal(columns: int, *arguments: object, **variables: str) -> str:
    """Everything a command writes to a terminal of this width, with control sequences."""
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    command = [sys.executable, "-m", "rjem_cli", *map(str, arguments)]
    environment |= {"TERM": "xterm-256color", **variables}
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment) as process:
        os.close(its)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:  # how Linux tells that the other end is closed
            pass
        os.close(ours)
        assert process.wait() == 0, shown.decode()
    return shown.decode()


@pytest.mark.parametrize(("columns", "variables"), [(80, {}), (120, {"NO_COLOR": "1"})])
def test_the_output_of_a_run_fits_the_terminal(own_home, columns, variables):
    shown = on_terminal(columns, "train", "--run", "seen", *TINY_FLAGS, **variables)
    lines = CONTROL.sub("", shown).replace("\r", "\n").split("\n")
    assert all(
        len(line) <= columns for line in lines if len(max(line.split(), key=len, default="")) < columns
    )  # a path
    for text in (
        "metric",
        "history",
        LABELS["energy_data"],
        LABELS["input_grad_norm"],
        "training",
        "left",
        "Training result",
    ):
        assert any(text in line for line in lines), text
    assert bool(COLOUR.search(shown)) != bool(variables)
