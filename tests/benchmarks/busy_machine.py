"""What do waiting threads cost: a command alone on an idle machine, and two of them side by side?

libgomp's threads spin while they wait for each other. How long is set by GOMP_SPINCOUNT or OMP_WAIT_POLICY. Each round
runs every setting once, so that all see the same machine. Prints medians, and the median of the ratios to `--baseline`
within a round.

    python -m tests.benchmarks.busy_machine --rounds 9 --settings rjem,spin-300000
    python -m tests.benchmarks.busy_machine --pairs --rounds 3 --settings rjem,passive
    python -m tests.benchmarks.busy_machine --rounds 9 --settings old,rjem --old ../rjem-0.1  # an older checkout
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
WIDE = "--dataset digits --image-size 32 --depth 16 --width 2 --norm-layer none --precision fp32"
COMMANDS = {
    "train": "train --preset quickstart --steps 60 --eval-limit 1 --sample-every 1000",
    "train wide": f"train {WIDE} --batch-size 32 --steps 2 --eval-limit 1 --sample-every 1000",
    "generate": "generate narrow -n 1000",
    "generate wide": "generate wide -n 50 --sgld-steps 10",
    "attack": "attack narrow --limit 1500 --method apgd --eps 0.01",
    "attack wide": "attack wide --limit 50 --steps 10 --method apgd --eps 0.001",
    "eval": "eval narrow --limit 500 --steps 10 --samples 0",
    "eval wide": "eval wide --limit 50 --steps 2 --samples 0 --eps 0.001",
}
SETUP = (
    "train --preset quickstart --steps 20 --run narrow --eval-limit 1",
    f"train {WIDE} --steps 1 --warmup-steps 1 --run wide --eval-limit 1 --batch-size 16",
)


def variables(setting: str) -> dict[str, str]:
    """`rjem` and `old`: what rjem, and an older checkout, choose; `passive`; `spin-1000`; `spin-1000-threads-1`."""
    words = setting.split("-")
    named = dict(zip(words[::2], words[1::2])) if setting not in ("rjem", "old", "passive") else {}
    found = {"OMP_WAIT_POLICY": "passive"} if setting == "passive" else {}
    found |= {"GOMP_SPINCOUNT": named["spin"]} if "spin" in named else {}
    return found | ({"OMP_NUM_THREADS": named["threads"]} if "threads" in named else {})


def environment_of(setting: str, home: Path, old: Path | None) -> dict[str, str]:
    """The older checkout has its own runs: it may write other files."""
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    kept |= {"RJEM_HOME": str(home), "RJEM_OFFLINE": "1", **variables(setting)}
    if setting == "old" and old:
        kept |= {"RJEM_HOME": str(home / "old"), "PYTHONPATH": str(old.resolve())}
    return kept


def seconds(arguments: str, environment: dict[str, str], home: Path, copies: int) -> float:
    """Of `copies` processes that start together, until the last one ends."""
    name, start = f"run-{time.time_ns()}", time.perf_counter()
    processes = []
    for copy in range(copies):
        output = {"train": ["--run", f"{name}-{copy}"], "generate": ["-o", str(home / f"{name}-{copy}.npz")]}
        command = [sys.executable, "-m", "rjem_cli", *arguments.split(), *output.get(arguments.split()[0], [])]
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, env=environment, cwd=home, **streams))
    errors = [process.communicate()[1].decode() for process in processes]
    for process, error in zip(processes, errors):
        if process.returncode:
            sys.exit(f"{arguments} ended with {process.returncode}: {error[-500:]}")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", action="store_true", help="two processes side by side")
    parser.add_argument("--old", type=Path, metavar="FOLDER", help="an older checkout, for the setting `old`")
    parser.add_argument("--settings", default="spin-300000,spin-10000,spin-1000,passive")
    parser.add_argument("--baseline", help="the setting that the others are compared with [the first]")
    parser.add_argument("--commands", default=",".join(COMMANDS))
    options = parser.parse_args()
    settings, commands = options.settings.split(","), options.commands.split(",")
    baseline = options.baseline or settings[0]
    if ("old" in settings) != bool(options.old):
        parser.error("--old FOLDER goes with the setting `old`")
    taken: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        environments = {name: environment_of(name, home, options.old) for name in settings}
        for environment in {own["RJEM_HOME"]: own for own in environments.values()}.values():
            for arguments in SETUP:
                command = [sys.executable, "-m", "rjem_cli", *arguments.split(), "-q"]
                subprocess.run(command, env=environment, cwd=home, check=True, capture_output=True)
        for number in range(options.rounds):
            for command in commands:
                for setting in settings if number % 2 == 0 else reversed(settings):
                    found = seconds(COMMANDS[command], environments[setting], home, 1 + options.pairs)
                    taken.setdefault((command, setting), []).append(found)
    print(f"command\tsetting\tseconds\tfrom\tto\tratio to {baseline}")
    for (command, setting), found in sorted(taken.items()):
        ratio = statistics.median(own / other for own, other in zip(found, taken[command, baseline]))
        print(f"{command}\t{setting}\t{statistics.median(found):.2f}\t{min(found):.2f}\t{max(found):.2f}\t{ratio:.3f}")


if __name__ == "__main__":
    main()
