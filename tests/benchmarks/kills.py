"""Do runs that are killed with kill -9 at random moments and resumed end with the same bytes as a run never killed?

Each run has its own RJEM_HOME and the same flags. A killed run is resumed, or started again if it was killed before its
first checkpoint. Compares the final checkpoint, its state and the metrics.

    python -m tests.benchmarks.kills --runs 20 -- --preset quickstart
    python -m tests.benchmarks.kills --runs 1 --kills 20 -- --preset quickstart
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rjem_cli.paths import checkpoints_in, parse_step
from tests.run_results import result_digests

TRAIN = [sys.executable, "-m", "rjem_cli", "train"]


def build_command(home: Path, flags: list[str]) -> list[str]:
    return [*TRAIN, "-q", *(["--resume", "run"] if checkpoints_in(home / "runs/run") else ["--run", "run", *flags])]


def kill_after(home: Path, command: list[str], seconds: float) -> bool:
    """Start the command and kill it after so many seconds. False if it had ended before."""
    process = subprocess.Popen(command, env={**os.environ, "RJEM_HOME": str(home)})
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=1, help="of each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("flags", nargs="*", help="of rjem train, behind --")
    options = parser.parse_args()
    draws, equal_runs, kills = random.Random(options.seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder, "reference")
        started = time.perf_counter()
        subprocess.run(
            build_command(reference, options.flags), env={**os.environ, "RJEM_HOME": str(reference)}, check=True
        )
        seconds, expected = time.perf_counter() - started, result_digests(reference / "runs/run")
        print(f"never killed: {seconds:.0f} s, weights {expected[0][:12]}, state {expected[1][:12]}", flush=True)
        print("run\tkilled after s\tat checkpoint\tsame weights, state, metrics", flush=True)
        for run in range(options.runs):
            home = Path(folder, str(run))
            moments, steps = [], []
            while len(moments) < options.kills:
                moment = draws.uniform(0, 0.9 * seconds / options.kills)  # a later run may be faster
                if not kill_after(home, build_command(home, options.flags), moment):
                    break
                kills += 1
                moments.append(f"{moment:.1f}")
                checkpoints = checkpoints_in(home / "runs/run")
                steps.append(str(parse_step(checkpoints[-1])) if checkpoints else "none")
            subprocess.run(build_command(home, options.flags), env={**os.environ, "RJEM_HOME": str(home)}, check=True)
            equal = [a == b for a, b in zip(result_digests(home / "runs/run"), expected)]
            equal_runs += all(equal)
            print(f"{run}\t{' '.join(moments)}\t{' '.join(steps)}\t{equal}", flush=True)
    print(f"{equal_runs} of {options.runs} runs ended like the one never killed; {kills} kills hit a running process")


if __name__ == "__main__":
    main()
