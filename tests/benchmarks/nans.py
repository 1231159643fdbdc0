"""NaNs at random steps of training runs: is each recovered from and named, and does the network still learn?

One of the weights, the chains or the images becomes NaN just before a step, as a faulty device would have it. Each
recovery halves the learning rate, so what is left of accuracy is shown beside that of the run without any.

    python tests/benchmarks/nans.py --runs 10 --nans 5 -- --preset quickstart
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import math
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

from rjem_cli.__main__ import main as rjem
from rjem_cli.engine.training.trainer import Trainer


def weight(trainer: Trainer) -> None:
    next(iter(trainer.model.parameters())).data.view(-1)[0] = math.nan


def chains(trainer: Trainer) -> None:
    assert trainer.buffer is not None
    trainer.buffer.images[:] = math.nan


def average_too(trainer: Trainer) -> None:
    weight(trainer)
    next(iter(trainer.average.parameters())).data.view(-1)[0] = math.nan


POISONS: tuple[Callable[[Trainer], None], ...] = (weight, chains, average_too)


def trained(flags: list[str], sick: dict[int, Callable[[Trainer], None]], home: Path) -> tuple[dict, list[dict]]:
    """(summary, events) of a run whose steps, counted as they are taken, are poisoned where `sick` says."""
    take, calls = Trainer.train_step, itertools.count()

    def train_step(self: Trainer):
        sick.get(next(calls), lambda trainer: None)(self)
        return take(self)

    Trainer.train_step = train_step  # type: ignore[method-assign]
    os.environ["RJEM_HOME"] = str(home)
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as err:
            code = rjem(["train", "--run", "run", "--json", *flags])
    finally:
        Trainer.train_step = take  # type: ignore[method-assign]
    assert code == 0, err.getvalue()
    lines = [json.loads(line) for line in (home / "runs/run/metrics.jsonl").read_text().splitlines()]
    return json.loads(out.getvalue()), [line for line in lines if "event" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--nans", type=int, default=5, help="of each run")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("flags", nargs="*", help="of rjem train, behind --")
    options = parser.parse_args()
    flags = [*options.flags, "--steps", str(options.steps), "--max-divergences", str(options.nans)]
    draws, recovered = random.Random(0), 0
    print("run\tat\tpoison\trecovered\tnamed\taccuracy", flush=True)
    with tempfile.TemporaryDirectory() as place:
        for run in range(options.runs + 1):
            count = options.nans if run else 0  # the first is as it should be
            steps = sorted(draws.sample(range(options.steps), count))
            sick = {step: draws.choice(POISONS) for step in steps}
            summary, events = trained(flags, sick, Path(place, str(run)))
            names = "; ".join(event["what"] for event in events)
            kinds = " ".join(sick[step].__name__ for step in steps)
            accuracy = summary["test_accuracy"]["value"]
            print(f"{run}\t{steps}\t{kinds}\t{len(events)}\t{names}\t{accuracy:.2%}", flush=True)
            recovered += len(events)
    print(f"{recovered} of {options.runs * options.nans} recovered from")


if __name__ == "__main__":
    main()
