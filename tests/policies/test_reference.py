"""docs/reference.md matches the declarations, and the help of each command shows how to use it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from rjem_cli.__main__ import main

DOCS = Path(__file__).parents[2] / "docs"
COMMANDS = ["train", "attack", "langevin", "generate", "eval", "compare", "import", "export", "env", "completion"]
WIDTH = 78  # two columns stay free
COMMANDS += ["runs dir", "runs ls", "runs show", "runs rm", "cache dir", "cache ls", "cache rm", "cache prune"]


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.reference()


def test_the_reference_is_fresh(reference):
    assert reference == (DOCS / "reference.md").read_text(encoding="utf-8"), "run python docs/make_reference.py"


def test_it_has_every_command_and_every_flag_has_a_meaning(reference):
    assert re.findall(r"^## rjem (.*)$", reference, re.MULTILINE) == COMMANDS
    rows = re.findall(r"^\| `(-[^`]*)`.*? \| (.*) \|$", reference, re.MULTILINE)
    assert len(rows) > 200 and all(len(meaning) > 3 for _, meaning in rows)


@pytest.mark.parametrize("command_line", COMMANDS)
def test_every_help_has_two_examples_that_fit_80_columns(capsys, monkeypatch, command_line):
    monkeypatch.setenv("COLUMNS", "200")  # else they are broken where they do not fit
    assert main([*command_line.split(), "--help"]) == 0
    examples = capsys.readouterr().out.partition("Examples:")[2]
    examples = re.split("^(?:Arguments|Options):", examples, maxsplit=1, flags=re.MULTILINE)[0]
    assert all(len(line) <= WIDTH for line in examples.splitlines())
    command = r"^\s*(?:\S.*\| )?(?:rjem|source|du|tensorboard|RJEM_\S+ rjem) "
    assert len(re.findall(command, examples, re.MULTILINE)) >= 2


@pytest.mark.parametrize("group", [[], ["cache"], ["runs"]])
@pytest.mark.parametrize("width", ["60", "80"])
def test_no_help_of_a_group_is_cut_off(capsys, monkeypatch, group, width):
    monkeypatch.setenv("COLUMNS", width)
    assert main([*group, "--help"]) == 0
    listed = capsys.readouterr().out.partition("\nCommands:")[2]
    assert len(listed.splitlines()) > 4 and "..." not in listed


@pytest.mark.parametrize("page", [*DOCS.glob("*.md"), DOCS.parent / "README.md"], ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        other = (page.parent / name) if name else page
        assert other.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", other.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, target
