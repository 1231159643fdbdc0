"""rjem eval beside torch-fidelity's own command: the same images, the same weights, the same numbers, in which time?

Folders of photographs from two archives, and InceptionV3 with random weights (the published ones are a download). Each
command is called as a user would, one after the other. `other samples` is rjem with the reference known.

    python -m tests.benchmarks.fidelity cifar10-train.tar.xz cifar10-test.tar.xz
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rjem_cli.engine.data.archives import read_members
from rjem_cli.engine.data.images import spread_indices
from tests.random_inception import THEIR_NAMES, write_random_inception


def unpack(archive: str, folder: Path, count: int, offset: int = 0) -> Path:
    """`count` images spread over an archive's, as they lie there; `offset` takes their neighbours."""
    members = sorted(read_members(Path(archive)))
    folder.mkdir()
    for index in (spread_indices(len(members) - offset, count) + offset).tolist():
        name, content = members[index]
        (folder / name.replace("/", "-")).write_bytes(content)
    return folder


def timed(command: list[str]) -> tuple[float, dict[str, float]]:
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - started
    return seconds, json.loads(done.stdout[done.stdout.index("{") :])  # fidelity says a sentence before its JSON


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("real")
    parser.add_argument("samples")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--kid-subset-size", type=int, default=500, help="a whole set has no subsets to differ")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["RJEM_HOME"] = f"{home}/rjem"
        weights = str(write_random_inception(Path(home, "random.pth")))
        real = unpack(options.real, Path(home, "real"), options.count)
        samples = unpack(options.samples, Path(home, "samples"), options.count)
        others = unpack(options.samples, Path(home, "others"), options.count, offset=3)
        size = ["--kid-subset-size", str(options.kid_subset_size)]
        theirs = [
            str(Path(sys.executable).with_name("fidelity")),
            "--isc",
            "--fid",
            "--kid",
            "--prc",
            "--json",
            "--silent",
        ]
        theirs += [
            "--input1",
            str(samples),
            "--input2",
            str(real),
            "--feature-extractor",
            "inception-v3-compat",
            "--no-cache",
        ]
        theirs += ["--feature-extractor-weights-path", weights, *size]
        ours = [
            sys.executable,
            "-m",
            "rjem_cli",
            "eval",
            "--reference",
            str(real),
            "--features",
            weights,
            "--allow-few",
        ]
        ours += ["--metrics", "is,fid,kid,precision_recall", "--json", *size]
        calls = {
            "rjem": [*ours, str(samples)],
            "fidelity": theirs,
            "rjem, other samples": [*ours, str(others)],
            "rjem, all metrics, kept": [*ours, str(samples), "--metrics", "all"],
            "rjem, the same": [*ours, str(samples)],
        }
        found = {}
        print("call\tseconds\timages/s\tof rjem's first", flush=True)
        for name, command in calls.items():
            seconds, found[name] = timed(command)
            first = found.setdefault("seconds", {"rjem": seconds})["rjem"]
            print(f"{name}\t{seconds:.1f}\t{2 * options.count / seconds:.1f}\t{seconds / first:.2f}", flush=True)
        print("score\trjem\tfidelity\trelative difference")
        for name, other in THEIR_NAMES.items():
            a, b = found["rjem"][name], found["fidelity"][other]
            print(f"{name}\t{a:.10g}\t{b:.10g}\t{abs(a - b) / abs(b):.1e}")


if __name__ == "__main__":
    main()
