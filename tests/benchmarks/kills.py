"""kill -9 at random moments of a training run, each resumed: do all end with the bytes of the run never killed?

Every run has a RJEM_HOME of its own and the same flags. Once killed it goes on with `--resume`, or begins again where
it was killed before its first checkpoint. Compared are the final checkpoint, its state and the metrics.

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


def command_of(home: Path, flags: list[str]) -> list[str]:
    return [*TRAIN, "-q", *(["--resume", "run"] if checkpoints_in(home / "runs/run") else ["--run", "run", *flags])]


def killed(home: Path, command: list[str], seconds: float) -> bool:
    """Whether the command was still there to be killed after so many seconds."""
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
    draws, same, landed = random.Random(options.seed), 0, 0
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place, "whole")
        started = time.perf_counter()
        subprocess.run(command_of(whole, options.flags), env={**os.environ, "RJEM_HOME": str(whole)}, check=True)
        seconds, expected = time.perf_counter() - started, result_digests(whole / "runs/run")
        print(f"never killed: {seconds:.0f} s, weights {expected[0][:12]}, state {expected[1][:12]}", flush=True)
        print("run\tkilled after s\tat checkpoint\tsame weights, state, metrics", flush=True)
        for run in range(options.runs):
            home = Path(place, str(run))
            moments, places = [], []
            while len(moments) < options.kills:
                moment = draws.uniform(0, 0.9 * seconds / options.kills)  # a later run may be faster
                if not killed(home, command_of(home, options.flags), moment):
                    break
                landed += 1
                moments.append(f"{moment:.1f}")
                found = checkpoints_in(home / "runs/run")
                places.append(str(parse_step(found[-1])) if found else "none")
            subprocess.run(command_of(home, options.flags), env={**os.environ, "RJEM_HOME": str(home)}, check=True)
            equal = [a == b for a, b in zip(result_digests(home / "runs/run"), expected)]
            same += all(equal)
            print(f"{run}\t{' '.join(moments)}\t{' '.join(places)}\t{equal}", flush=True)
    print(f"{same} of {options.runs} runs ended as the one never killed; {landed} kills found their run alive")


if __name__ == "__main__":
    main()
