"""Are the estimates of --dry-run right?

Runs each command with --dry-run and without, and prints the estimated and the measured seconds and peak memory.

    python -m tests.benchmarks.estimates [--precision bf16] [--only train]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.growth import measure_process
from tests.benchmarks.rank_throughput import noise_images
from tests.image_files import write

WRN_16_2 = "--preset jempp --pgd-steps 15 --depth 16 --width 2 --epochs 1 --data {noise} --sample-steps 10"
COMMANDS = {
    "train, quickstart": "train --preset quickstart --run quick",
    "train, quickstart, batch 128": "train --preset quickstart --run broad --batch-size 128 --steps 500",
    "train, WRN-16-2, 32x32": f"train {WRN_16_2} --run wide --steps 30",
    "train, WRN-16-2, 32x32, batch 32": f"train {WRN_16_2} --run narrow --steps 60 --batch-size 32",
    "generate 4,000, energy": "generate quick -n 4000 -o {folder}/energy.npz",
    "generate 4,000, combined": "generate quick -n 4000 --mode combined -o {folder}/combined.npz",
    "generate 200, energy, WRN-16-2": "generate wide -n 200 --sgld-steps 50 -o {folder}/wide.npz",
    "attack 5,000, two radii": "attack quick --limit 5000 --eps 0.05,0.1 --steps 20",
}


def read_estimate(command: list[str]) -> tuple[float, float]:
    """(seconds, MB)."""
    output = subprocess.run([*command, "--dry-run", "--json"], capture_output=True, check=True).stdout
    estimate = json.loads(output)
    return estimate["seconds"], (estimate["memory_bytes"] or 0) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--only", default="", help="only commands whose name contains this")
    options = parser.parse_args()
    print("command\ts, estimated\ts, measured\tratio\tMB, estimated\tMB, measured\tratio")
    with tempfile.TemporaryDirectory() as name:
        os.environ["RJEM_HOME"] = f"{name}/home"
        write(noise_images(), Path(name) / "noise")
        for label, text in COMMANDS.items():
            if options.only not in label:
                continue
            arguments = text.format(noise=f"{name}/noise", folder=name).split()
            command = [sys.executable, "-m", "rjem_cli", *arguments, "--precision", options.precision]
            pairs = zip(read_estimate(command), measure_process(command))
            columns = (f"{estimated:.4g}\t{measured:.4g}\t{estimated / measured:.2f}" for estimated, measured in pairs)
            print("\t".join((label, *columns)), flush=True)


if __name__ == "__main__":
    main()
