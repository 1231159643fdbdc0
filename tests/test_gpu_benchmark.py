"""The GPU benchmark runs on a CPU: each part is done, or skipped with a reason, and one that fails loses no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
LIMIT = 300  # seconds that a busy machine may take
WITH_BAD_PARTS = """
import os, sys
from tests.benchmarks.gpu import __main__ as gpu
from tests.benchmarks.gpu.parts import Part

def fail(bench):
    bench.measure({"row": 1}, lambda: {"value": 2.0})
    raise ValueError("two\\nlines")

def end(bench):
    bench.measure({"row": 1}, lambda: {"value": 3.0})
    os.abort()

bad = {"levers": Part("levers", "it raises", fail), "precision": Part("precision", "its process ends", end)}
gpu.PARTS = tuple(bad.get(part.name, part) for part in gpu.PARTS)
sys.exit(gpu.main())
"""


def run(out: Path, *command: str) -> tuple[int, dict[str, dict], str]:
    """(exit code, parts by name, gpu.md)."""
    command = (sys.executable, *command, "--device", "cpu", "--sizes", "tiny", "--out", str(out))
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=LIMIT)
    assert (out / "gpu.json").exists(), done.stderr
    document = json.loads((out / "gpu.json").read_text())
    assert document["commit"] and document["device"].startswith("cpu") and document["torch"]
    return done.returncode, {part["name"]: part for part in document["parts"]}, (out / "gpu.md").read_text()


def test_each_part_is_done_or_skipped_with_a_reason(tmp_path):
    code, parts, text = run(tmp_path, "-m", "tests.benchmarks.gpu")
    assert list(parts) == ["tests", "speed", "levers", "graph", "precision", "memory", "ranks"]
    for name, part in parts.items():
        assert part["status"] == "done" or (part["status"] == "skipped" and part["reason"]), part
        assert f"## {name}: {part['title']}" in text
    assert {name for name, part in parts.items() if part["status"] == "skipped"} == {"graph", "memory", "ranks"}
    assert all(part["rows"] for part in parts.values() if part["status"] == "done")
    assert code == 0


def test_a_part_that_fails_is_reported_and_the_others_finish(tmp_path):
    code, parts, text = run(tmp_path, "-c", WITH_BAD_PARTS, "--only", "levers,graph,precision,memory")
    assert code == 1
    assert (parts["levers"]["status"], parts["levers"]["reason"]) == ("failed", "ValueError: two lines")
    assert (parts["precision"]["status"], parts["precision"]["reason"]) == ("failed", "its process ended with -6")
    assert [parts[name]["rows"] for name in ("levers", "precision")] == [
        [{"row": 1, "value": 2.0}],
        [{"row": 1, "value": 3.0}],
    ]
    assert parts["graph"]["status"] == parts["memory"]["status"] == "skipped"
    assert "| levers | failed | ValueError: two lines |" in text
