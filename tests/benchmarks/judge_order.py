"""Does FD-judge order what must be ordered? Test images < samples < what the chains start from < noise.

For each run (the quickstart's, of several seeds): scores of 5,000 samples of each kind against the training images.

    for s in 0 1 2; do rjem train --preset quickstart --seed $s --run digits-$s; done
    python tests/benchmarks/judge_order.py digits-0 digits-1 digits-2
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rjem_cli.engine.models.checkpoint import read_info
from rjem_cli.paths import find_checkpoint

COUNT = 5000
KINDS = {
    "energy": (),
    "combined": ("--mode", "combined"),
    "attack": ("--mode", "attack"),
    "prior": ("--sgld-steps", "0"),
    "noise": ("--init", "noise", "--sgld-steps", "0"),
}
SCORES = (
    "fd_judge",
    "is_judge",
    "precision_judge",
    "recall_judge",
    "density_judge",
    "coverage_judge",
    "near_copies_judge",
)


def rjem(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "rjem_cli", *arguments], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def row(run: str, kind: str, samples: str, reference: str) -> float:
    metrics = "fid,is,precision_recall,density_coverage,memorization"
    flags = ("--num", str(COUNT), "--reference", reference, "--metrics", metrics, "--json")
    found = json.loads(rjem("eval", samples, *flags))
    print("\t".join([run, kind, *(f"{found[name]:.4g}" for name in SCORES)]), flush=True)
    return float(found["fd_judge"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+")
    options = parser.parse_args()
    print("\t".join(["run", "samples", *SCORES]))
    for run in options.runs:
        name = read_info(find_checkpoint(run)).data_name
        distance = {"test": row(run, "test images", f"{name}:test", f"{name}:train")}
        with tempfile.TemporaryDirectory() as folder:
            for kind, flags in KINDS.items():
                samples = str(Path(folder, f"{kind}.npz"))
                rjem("generate", run, "-n", str(COUNT), "-o", samples, "--seed", "1000000", "-q", *flags)
                distance[kind] = row(run, kind, samples, f"{name}:train")
        order = [distance[kind] for kind in ("test", "energy", "prior", "noise")]
        verdict = "ordered" if order == sorted(order) else "NOT ordered"
        print(f"{run}\t{verdict}; energy / prior = {distance['energy'] / distance['prior']:.3f}", flush=True)


if __name__ == "__main__":
    main()
