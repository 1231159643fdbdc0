"""Layers: a module imports from its own layer or a lower one, and nothing heavy outside of the engine."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "rjem_cli"
LAYERS = {"": 4, "__main__": 4, "cli": 3, "api": 2, "engine": 1}  # anything else is 0
ENGINE_LAYERS = {  # modules directly in the engine that import a subpackage are in a layer above it; others are 0
    "data": 0,
    "models": 1,
    "cpu_speed": 2,
    "precision": 2,
    "runtime": 2,
    "timing": 2,
    "inference": 2,
    "attacks": 2,
    "sampling": 2,
    "training": 2,
    "metrics": 2,
    "environment": 3,
    "compare": 3,
    "exchange": 3,
}
HEAVY = {"torch", "torchvision", "numpy", "scipy", "sklearn", "safetensors", "PIL", "matplotlib", "torch_fidelity"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def parts_of(path: Path) -> list[str]:
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports_of(path: Path, top_level_only: bool = False) -> list[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def layer_of(parts: list[str]) -> int:
    return LAYERS.get(parts[0] if parts else "", 0)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    parts = parts_of(path)
    layer = layer_of(parts)
    for name in imports_of(path):
        target = name.split(".")
        if target[0] != "rjem_cli" or len(target) < 2 or target[1].startswith("__version"):
            continue
        assert layer_of(target[1:]) <= layer, f"{path} (layer {layer}) imports {name}"
        if parts[:1] == target[1:2] == ["engine"] and len(parts) > 1:
            assert ENGINE_LAYERS.get(target[2], 0) <= ENGINE_LAYERS.get(parts[1], 0), f"{path} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_heavy_is_imported_above_the_engine(path):
    parts = parts_of(path)
    if parts[:1] in (["engine"], ["api"]):
        names = {name.split(".")[0] for name in imports_of(path)}
        assert not names & {"typer", "rich"}, f"{path} imports what only the interface may"
    else:
        names = {name.split(".")[0] for name in imports_of(path, top_level_only=True)}
        assert not names & HEAVY, f"{path} imports {names & HEAVY} at its top"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_console_prints_and_files_fit_a_reader(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 350, f"{path} has more than 350 lines: make two files of it"
    calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    writers = {"print", "typer.echo", "sys.stdout.write", "sys.stderr.write"}
    assert not writers & set(calls) or path.name == "console.py"


@pytest.mark.parametrize(
    "arguments",
    [
        *([name, "--help"] for name in ("train", "generate", "attack", "langevin", "eval")),
        ["--help"],
        ["train", "--print-config"],
    ],
)
def test_help_loads_nothing_heavy(arguments):
    code = (
        "import sys; from rjem_cli.__main__ import main; "
        f"code = main({arguments!r}); heavy = {HEAVY!r} & sys.modules.keys(); assert code == 0 and not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
