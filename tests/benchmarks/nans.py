"""Does training recover from NaNs at random steps, record each, and still learn?

A weight, the chains, an image, or a weight and its average become NaN just before a step. Each recovery halves the
learning rate, so the accuracies are printed with that of a run without NaNs.

    python -m tests.benchmarks.nans --runs 10 --nans 5 -- --preset quickstart
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import tempfile
from pathlib import Path

from rjem_cli.__main__ import main as rjem
from rjem_cli.engine.training.trainer import Trainer
from tests.poisons import (
    Poison,
    nan_in_a_weight,
    nan_in_the_average,
    nan_in_the_chains,
    nan_in_the_images,
    with_poisons,
)
from tests.run_results import metrics_of

POISONS = (nan_in_a_weight, nan_in_the_chains, nan_in_the_images, nan_in_the_average)


def train(flags: list[str], poisons: dict[int, Poison], home: Path) -> tuple[dict, list[dict]]:
    """(summary, events) of a run with these poisons, by the index of the step that follows."""
    take = Trainer.train_step
    Trainer.train_step = with_poisons(take, poisons)  # type: ignore[method-assign]
    os.environ["RJEM_HOME"] = str(home)
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as err:
            code = rjem(["train", "--run", "run", "--json", *flags])
    finally:
        Trainer.train_step = take  # type: ignore[method-assign]
    assert code == 0, err.getvalue()
    return json.loads(out.getvalue()), [line for line in metrics_of(home / "runs/run") if "event" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--nans", type=int, default=5, help="of each run")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("flags", nargs="*", help="of rjem train, behind --")
    options = parser.parse_args()
    flags = [*options.flags, "--steps", str(options.steps), "--max-divergences", str(options.nans)]
    draws, recovered = random.Random(0), 0
    print("run\tat\tpoison\trecovered\trecorded\taccuracy", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for run in range(options.runs + 1):
            count = options.nans if run else 0  # the first run has none
            steps = sorted(draws.sample(range(options.steps), count))
            poisons = {step: draws.choice(POISONS) for step in steps}
            summary, events = train(flags, poisons, Path(folder, str(run)))
            names = "; ".join(event["reason"] for event in events)
            kinds = " ".join(poisons[step].__name__ for step in steps)
            accuracy = summary["test_accuracy"]["value"]
            print(f"{run}\t{steps}\t{kinds}\t{len(events)}\t{names}\t{accuracy:.2%}", flush=True)
            recovered += len(events)
    print(f"{recovered} of {options.runs * options.nans} recovered from")


if __name__ == "__main__":
    main()
