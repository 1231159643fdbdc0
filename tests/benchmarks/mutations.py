"""Check that the fast tests catch ten mutations of the core, each in a copy of the tree.

    python tests/benchmarks/mutations.py

The unchanged copy must pass. Prints the first tests that fail for each mutation, and exits with 1 if one survives.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
ENGINE = "rjem_cli/engine"


class Mutation(NamedTuple):
    """One text in one file, and what takes its place."""

    name: str
    file: str
    old: str
    new: str


MUTATIONS = [
    Mutation("sign of the SGLD step", f"{ENGINE}/chains/sgld.py", "moved = x - step_size *", "moved = x + step_size *"),
    Mutation(
        "missing projection",
        f"{ENGINE}/chains/pgd.py",
        "return project(x + step_size * pgd_direction(gradient, norm), center, eps, norm)",
        "return x + step_size * pgd_direction(gradient, norm)",
    ),
    Mutation("wrong axis in logsumexp", f"{ENGINE}/model/energy.py", "logits_BK, dim=1", "logits_BK, dim=0"),
    Mutation(
        "EMA off by one",
        f"{ENGINE}/training/averaging.py",
        "((1 + updates) / (10 + updates))",
        "((2 + updates) / (11 + updates))",
    ),
    Mutation(
        "unit of eps",
        "rjem_cli/knobs.py",
        "return float(numerator) / float(denominator) / PIXEL_PER_MODEL_UNIT",
        "return float(numerator) / float(denominator)",
    ),
    Mutation(
        "shifted labels",
        f"{ENGINE}/training/trainer.py",
        "for part in (x, x_energy, labels)))",
        "for part in (x, x_energy, labels.roll(1))))",
    ),
    Mutation(
        "contrast skipped",
        f"{ENGINE}/chains/pipeline.py",
        "sampler >>= contrast(plan.contrast)",
        "sampler >>= contrast(1.0)",
    ),
    Mutation(
        "constant seed of the noise",
        f"{ENGINE}/chains/noise.py",
        "standard_normal(seeds_B, tuple(x.shape[1:])",
        "standard_normal(0 * seeds_B, tuple(x.shape[1:])",
    ),
    Mutation(
        "buffer never stored",
        f"{ENGINE}/training/replay_buffer.py",
        "self.own[held.rows] = images[held.mine]",
        "self.own[held.rows] = self.own[held.rows]",
    ),
    Mutation(
        "BatchNorm unfrozen in chains",
        f"{ENGINE}/model/frozen.py",
        "frozen = deep_copy(model).eval().requires_grad_(False)",
        "return deep_copy(model).train().requires_grad_(False)",
    ),
]


def failures_of(mutation: Mutation | None) -> list[str]:
    """Names of the first tests that fail with it; with None, in the unchanged tree."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "rjem"
        kept_out = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "*.egg-info")
        shutil.copytree(ROOT, tree, ignore=kept_out)
        if mutation:
            file = tree / mutation.file
            text = file.read_text()
            if text.count(mutation.old) != 1:
                raise SystemExit(f"{mutation.file} must contain this text exactly once: {mutation.old}")
            file.write_text(text.replace(mutation.old, mutation.new))
        command = [sys.executable, "-m", "pytest", "--maxfail", "3", "--tb", "no", "-rfE", "-p", "no:cacheprovider"]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
        return re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)


def main() -> int:
    if failures := failures_of(None):
        raise SystemExit(f"tests fail without any mutation: {', '.join(failures)}")
    survived = 0
    for mutation in MUTATIONS:
        started = time.perf_counter()
        failures = failures_of(mutation)
        survived += not failures
        print(f"{mutation.name}: {'caught' if failures else 'SURVIVED'} after {time.perf_counter() - started:.0f} s")
        for name in failures:
            print(f"  {name}", flush=True)
    print(f"{len(MUTATIONS) - survived} of {len(MUTATIONS)} are caught")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
