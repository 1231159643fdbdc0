"""kill -9 at random moments of the paper's table, each time begun again: is the table that of the one never killed?

Compared are all scores but the seconds, which are this machine's and moment's, their deviations and protocols, and the
verdicts on the orderings. Five kills of the quickstart's table, all of a command that was alive, ended with the same
table (two cores of an AMD EPYC, 389 s without kills).

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
TIMES = "seconds_per_1000"


def table_of(home: Path, flags: list[str]) -> tuple[list[Any], list[dict[str, str]]]:
    """(scores, deviations and protocols of each row without times; orderings), after whatever is left to do."""
    environment = {**os.environ, "RJEM_HOME": str(home)}
    written = subprocess.run([*COMPARE, "--json", *flags], env=environment, check=True, capture_output=True)
    found: dict[str, Any] = json.loads(written.stdout)
    parts = ("scores", "spreads", "protocols")
    rows = [[{name: row[part][name] for name in row[part] if name != TIMES} for part in parts] for row in found["rows"]]
    return rows, found["orderings"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("flags", nargs="*", help="of rjem compare, behind --")
    options = parser.parse_args()
    draws = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as place:
        whole, home = Path(place, "whole"), Path(place, "killed")
        started = time.perf_counter()
        expected = table_of(whole, options.flags)
        seconds = time.perf_counter() - started
        print(f"never killed: {seconds:.0f} s, {len(expected[0])} rows", flush=True)
        landed = 0
        for moment in (draws.uniform(0, 2 * seconds / (options.kills + 1)) for _ in range(options.kills)):
            landed += killed(home, [*COMPARE, *options.flags], moment)
            kept = len(list(home.glob("cache/comparisons/*.json"))), len(list(home.glob("runs/*/summary.json")))
            print(f"killed after {moment:.0f} s: {kept[0]} measurements kept, {kept[1]} runs ended", flush=True)
        same = table_of(home, options.flags) == expected
    print(f"{landed} of {options.kills} kills found it alive; the table is {'the same' if same else 'ANOTHER'}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
