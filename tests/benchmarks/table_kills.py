"""Kill `rjem compare --reproduce table1` at random moments, resume it, and compare its table with an uninterrupted one.

Scores, deviations, protocols and verdicts must be equal; seconds are left out because they depend on the machine. Five
kills (SIGKILL) of the quickstart's table gave the same table (two cores of an AMD EPYC, 389 s without kills).

    python -m tests.benchmarks.table_kills --kills 5 -- --scale quickstart
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.kills import killed

COMPARE = [sys.executable, "-m", "rjem_cli", "compare", "--reproduce", "table1", "-q"]
SECONDS = "seconds_per_1000"


def reproduce(home: Path, flags: list[str]) -> tuple[list[Any], list[dict[str, str]]]:
    """Run the command to its end. Returns scores, deviations and protocols of each row, and the orderings."""
    environment = {**os.environ, "RJEM_HOME": str(home)}
    done = subprocess.run([*COMPARE, "--json", *flags], env=environment, check=True, capture_output=True)
    document: dict[str, Any] = json.loads(done.stdout)
    parts = ("scores", "spreads", "protocols")
    rows = [
        {part: {column: value for column, value in row[part].items() if column != SECONDS} for part in parts}
        for row in document["rows"]
    ]
    return rows, document["orderings"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("flags", nargs="*", help="of rjem compare, after --")
    options = parser.parse_args()
    generator = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        expected = reproduce(Path(folder, "uninterrupted"), options.flags)
        seconds = time.perf_counter() - started
        print(f"uninterrupted: {seconds:.0f} s, {len(expected[0])} rows", flush=True)
        home, kills = Path(folder, "killed"), 0
        for _ in range(options.kills):
            moment = generator.uniform(0, 2 * seconds / (options.kills + 1))
            kills += killed(home, [*COMPARE, *options.flags], moment)
            measurements = len(list(home.glob("cache/comparisons/*.json")))
            runs = len(list(home.glob("runs/*/summary.json")))
            print(f"killed after {moment:.0f} s: {measurements} cached measurements, {runs} finished runs", flush=True)
        same = reproduce(home, options.flags) == expected
    print(f"{kills} of {options.kills} kills hit a running command; the table is {'the same' if same else 'DIFFERENT'}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
