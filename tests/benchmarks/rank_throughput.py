"""How much faster do several processes of one thread train than one process of one thread?

Trains the same steps with the same batches, in one process and under torchrun in turn, and reads images per second from
metrics.jsonl, without the first line of each run. Several CPU processes need --norm-layer group or none.

    python -m tests.benchmarks.rank_throughput --processes 2
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from rjem_cli.engine.data.png import png_bytes, to_image
from tests.image_files import write

IMAGES, CLASSES, SIDE = 320, 10, 32


def noise_images() -> dict[str, bytes]:
    pixels = torch.randint(256, (IMAGES, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return {f"class-{place % CLASSES}/{place}.png": png_bytes(to_image(image)) for place, image in enumerate(pixels)}


def images_per_second(launcher: list[str], name: str, flags: list[str], home: Path) -> list[float]:
    environment = {**os.environ, "RJEM_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, "rjem_cli", "train", "--run", name, *flags]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    lines = map(json.loads, (home / "runs" / name / "metrics.jsonl").read_text().splitlines())
    return [line["images_per_second"] for line in lines][1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--flags", default="--preset jempp --pgd-steps 15 --depth 16 --width 2 --batch-size 64 --norm-layer group"
    )
    options = parser.parse_args()
    alone = ["-m"]
    several = ["-m", "torch.distributed.run", f"--nproc-per-node={options.processes}", "-m", "--"]
    rates: dict[str, list[float]] = {"alone": [], "several": []}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        write(noise_images(), home / "noise")
        flags = [*options.flags.split(), "--data", str(home / "noise"), "--steps", "8", "--log-every", "2"]
        flags += ["--sample-steps", "1", "--attack-steps", "1", "--eval-limit", "1", "--buffer-size", "640"]
        for number in range(options.rounds):
            for name, launcher in (("alone", alone), ("several", several)):
                rates[name] += images_per_second(launcher, f"{name}-{number}", flags, home)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    for name, found in rates.items():
        print(f"{name}\t{medians[name]:.2f} images/s\t{min(found):.2f} to {max(found):.2f}, {len(found)} lines")
    print(
        f"{options.processes} processes of a thread\t{medians['several'] / medians['alone']:.2f} times one of a thread"
    )


if __name__ == "__main__":
    main()
