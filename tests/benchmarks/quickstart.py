"""What the quickstart reaches: time, accuracy, robust accuracy, and the share of samples that 1-NN reads as asked.

The reader is 1-NN on the pixels of the training images; it knows nothing of the model. Run it alone on the machine:

    python tests/benchmarks/quickstart.py --seeds 0 1 2 [-- any flags of rjem train]
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from rjem_cli.engine.data.images import ImageSet
from rjem_cli.engine.data.load import load_digit_splits


def flat(images: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    return images.pixels.flatten(1).numpy().astype(np.float32), images.labels.numpy()


def rjem(*arguments: str, home: Path) -> str:
    command = [sys.executable, "-m", "rjem_cli", *arguments]
    result = subprocess.run(command, env={**os.environ, "RJEM_HOME": str(home)}, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(command)} ended with {result.returncode}")
    return result.stdout


def share_read_as_asked(reader: KNeighborsClassifier, folder: Path) -> float:
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    pixels = np.stack([np.asarray(Image.open(folder / row["file"]), dtype=np.float32).ravel() for row in rows])
    return float(np.mean(reader.predict(pixels) == [int(row["label"]) for row in rows]))


def measure(seed: int, train_flags: list[str], reader: KNeighborsClassifier) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary) / "home"
        started = time.perf_counter()
        train = ("train", "--preset", "quickstart", "--seed", str(seed), "--json", *train_flags)
        summary = json.loads(rjem(*train, home=home))
        found = {
            "seed": seed,
            "train_seconds": round(time.perf_counter() - started, 1),
            "accuracy": summary["test_accuracy"]["value"],
            "robust_accuracy": summary["robust_accuracy"]["value"],
        }
        recipes = {
            "prior": ("--mode", "energy", "--sgld-steps", "0"),
            "energy": ("--mode", "energy"),
            "attack": ("--mode", "attack"),
            "combined": ("--mode", "combined"),
        }
        for name, flags in recipes.items():
            for classes, count in (("3", 100), ("all", 1000)):
                folder = Path(temporary) / f"{name}-{classes}"
                rjem("generate", "--class", classes, "-n", str(count), "-o", str(folder), "-q", *flags, home=home)
                found[f"{name}_{classes}"] = share_read_as_asked(reader, folder)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    known, train_flags = parser.parse_known_args()
    splits = load_digit_splits(0.1, shifted=True)
    reader = KNeighborsClassifier(1).fit(*flat(splits.train))
    print(json.dumps({"reader_on_test_set": round(float(reader.score(*flat(splits.test))), 4)}), flush=True)
    for seed in known.seeds:
        print(json.dumps(measure(seed, [flag for flag in train_flags if flag != "--"], reader)), flush=True)


if __name__ == "__main__":
    main()
