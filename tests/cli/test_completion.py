import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = {"bash": "rjem.bash", "zsh": "_rjem", "fish": "rjem.fish"}
COMPLETIONS = Path(__file__).parents[2] / "completions"


@pytest.mark.parametrize("shell", FILES)
def test_the_checked_in_scripts_are_fresh(rjem, shell):
    assert rjem("completion", shell).out == (COMPLETIONS / FILES[shell]).read_text()


def test_an_unknown_shell_is_named(rjem):
    outcome = rjem("completion", "fsh")
    assert outcome.code == 2 and "did you mean fish" in outcome.error_line()


@pytest.mark.parametrize(
    ("line", "expected"),
    [("rjem tr", "train"), ("rjem train --adv", "--adv-eps"), ("rjem train --preset qu", "quickstart")],
)
def test_bash_completes_commands_flags_and_presets(line, expected):
    words = line.split(" ")
    script = f"""source {COMPLETIONS / "rjem.bash"}
COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMP_LINE='{line}'; COMP_POINT={len(line)}
_rjem_completion rjem; printf '%s\\n' "${{COMPREPLY[@]}}" """
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    found = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert expected in found.stdout.split(), found.stderr
