"""Check that the fast tests catch ten mutations of the core, each in a copy of the tree.

    python tests/benchmarks/mutations.py             # all fast tests, several minutes per mutation
    python tests/benchmarks/mutations.py tests/laws  # only these tests
    python tests/benchmarks/mutations.py --check     # only check that the mutations fit the code

The unchanged copy must pass. A mutation is caught if a test fails; an error at import does not count. Prints the first
failed tests of each mutation, and exits with 1 if one is not caught.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
ENGINE = "rjem_cli/engine"
TIMEOUT = 3600.0  # seconds of the tests of one mutation


class Mutation(NamedTuple):
    """A text that occurs once in a file, and its replacement."""

    name: str
    file: str
    old: str
    new: str


MUTATIONS = [
    Mutation("sign of the SGLD step", f"{ENGINE}/sampling/sgld.py", "x = x - step_size *", "x = x + step_size *"),
    Mutation(
        "missing projection",
        f"{ENGINE}/attacks/pgd.py",
        "return project(x + step_size * pgd_direction(gradient, norm), center, eps, norm)",
        "return x + step_size * pgd_direction(gradient, norm)",
    ),
    Mutation("wrong axis in logsumexp", f"{ENGINE}/models/energy.py", "logits_BK, dim=1", "logits_BK, dim=0"),
    Mutation(
        "EMA off by one",
        f"{ENGINE}/training/optimizer.py",
        "((1 + updates) / (10 + updates))",
        "((2 + updates) / (11 + updates))",
    ),
    Mutation(
        "unit of eps",
        "rjem_cli/config/fields.py",
        "return (radius / PIXEL_PER_MODEL_UNIT if slash",
        "return (radius if slash",
    ),
    Mutation(
        "shifted labels",
        f"{ENGINE}/training/trainer.py",
        "for part in (x, x_energy, labels)))",
        "for part in (x, x_energy, labels.roll(1))))",
    ),
    Mutation(
        "contrast skipped",
        f"{ENGINE}/sampling/pipeline.py",
        "sampler >>= contrast(plan.contrast)",
        "sampler >>= contrast(1.0)",
    ),
    Mutation(
        "constant seed of the noise",
        f"{ENGINE}/sampling/pipeline.py",
        "standard_normal(seeds_B, tuple(x.shape[1:])",
        "standard_normal(0 * seeds_B, tuple(x.shape[1:])",
    ),
    Mutation(
        "buffer never stored",
        f"{ENGINE}/training/replay_buffer.py",
        "self.images[indices] = images",
        "self.images[indices] = self.images[indices]",
    ),
    Mutation(
        "BatchNorm unfrozen in chains",
        f"{ENGINE}/models/frozen.py",
        "copy.deepcopy(model).eval()",
        "copy.deepcopy(model).train()",
    ),
]


class TestRun(NamedTuple):
    """How the tests of a copy ended: "passed", "failed", "no test failed" or "timeout"; and the failed tests."""

    outcome: str
    failed: list[str]


def find_misfits() -> list[str]:
    """The mutations whose text does not occur exactly once, one line each."""
    misfits = []
    for mutation in MUTATIONS:
        path = ROOT / mutation.file
        count = path.read_text().count(mutation.old) if path.exists() else 0
        if count != 1:
            misfits.append(f"{mutation.name}: {mutation.file} has this text {count} times, not once: {mutation.old}")
    return misfits


def run_tests(mutation: Mutation | None, tests: list[str], timeout: float) -> TestRun:
    """Run tests in a copy of the tree, with the mutation if there is one."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "rjem"
        ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "*.egg-info")
        shutil.copytree(ROOT, tree, ignore=ignored)
        if mutation:
            file = tree / mutation.file
            file.write_text(file.read_text().replace(mutation.old, mutation.new))
        options = ["--maxfail", "5", "--tb", "no", "-rfE", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", *options, *tests]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        process = subprocess.Popen(
            command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # pytest and its workers
            process.communicate()
            return TestRun("timeout", [])
        failed = re.findall(r"^FAILED (\S+)", output, re.MULTILINE)
        if process.returncode == 0:
            return TestRun("passed", [])
        if process.returncode in (1, 2) and failed:  # xdist exits with 2 after --maxfail failures
            return TestRun("failed", failed)
        print(output[-2000:], file=sys.stderr)
        return TestRun("no test failed", [])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="*", help="files or folders of tests (default: all fast tests)")
    parser.add_argument("--check", action="store_true", help="check that each mutation fits the code; run no tests")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds per mutation (default: %(default)g)")
    options = parser.parse_args()
    if misfits := find_misfits():
        raise SystemExit("\n".join(misfits))
    if options.check:
        print(f"all {len(MUTATIONS)} mutations fit the code")
        return 0
    unchanged = run_tests(None, options.tests, options.timeout)
    if unchanged.outcome != "passed":
        raise SystemExit(f"without a mutation: {unchanged.outcome} {' '.join(unchanged.failed)}")
    caught = 0
    for mutation in MUTATIONS:
        started = time.perf_counter()
        result = run_tests(mutation, options.tests, options.timeout)
        caught += result.outcome == "failed"
        verdict = "caught" if result.outcome == "failed" else f"NOT CAUGHT ({result.outcome})"
        print(f"{mutation.name}: {verdict} after {time.perf_counter() - started:.0f} s")
        for name in result.failed:
            print(f"  {name}", flush=True)
    print(f"{caught} of {len(MUTATIONS)} are caught")
    return int(caught < len(MUTATIONS))


if __name__ == "__main__":
    sys.exit(main())
