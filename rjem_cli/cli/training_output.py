"""What a training run shows: what it will do, its progress, and the table at its end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rjem_cli.cli.console import Console
from rjem_cli.cli.formatting import format_bytes, format_duration
from rjem_cli.cli.metrics_table import MetricsTable
from rjem_cli.cli.progress import ProgressBar
from rjem_cli.cli.resume import how_to_resume, name_of
from rjem_cli.config import TrainConfig
from rjem_cli.config.fields import format_epsilon
from rjem_cli.errors import RjemError

if TYPE_CHECKING:
    from rjem_cli.engine.data.images import Splits
    from rjem_cli.engine.runtime import Runtime
    from rjem_cli.engine.training.estimate import TrainingEstimate
    from rjem_cli.engine.training.progress import TrainingProgress
    from rjem_cli.engine.training.run import RunResult

ACCURACIES = {"test_accuracy": "accuracy", "robust_accuracy": "robust accuracy"}
ENERGIES = {"energy_data": "E(x) of data", "energy_buffer": "E(x) of chains", "input_grad_norm": "|dE/dx| on data"}
COLUMNS = ("what", "value", "95% interval", "measured on")


def announce(config: TrainConfig, run_dir: Path, console: Console) -> None:
    """The network, the objective with radii in both units, the cost of a step, and what will be written."""
    attack, chains = "no attack", "no p(x) term"
    if config.attacks:
        attack = f"PGD {config.norm} eps {format_epsilon(config.adv_eps, config.norm)}, {config.pgd_steps} steps"
    if config.px_weight:
        step = config.sgld_step_size * config.inner_steps
        chains = f"SGLD {config.sgld_steps} steps of {step:g}, noise {config.noise_std:g}"
    passes = config.pgd_steps * config.attacks + config.sgld_steps * bool(config.px_weight)
    length = f"{config.steps} steps" if config.steps else f"{config.epochs:g} epochs"
    network = f"WRN-{config.depth}-{config.width} ({config.norm_layer} norm)"
    console.log(f"{network} on {config.data or config.dataset}, {length}, seed {config.seed}")
    console.log(f"{attack}; {chains}; {passes} gradient steps before each update")
    console.log(f"writes {run_dir}: config.yaml, metrics.jsonl, checkpoints, samples, summary.json")


def announce_inputs(splits: Splits, runtime: Runtime, console: Console) -> None:
    sizes = f"{len(splits.train)} + {len(splits.val)} + {len(splits.test)} images (train, val, test)"
    console.log(f"device: {runtime.describe()}")
    if busy := told_load(runtime.device.type):
        console.log(busy)
    console.log(f"data: {splits.name}, {sizes}")


def told_load(device_type: str) -> str | None:
    """A note where other work keeps the cores busy: threads that wait for each other then crawl."""
    if device_type != "cpu":
        return None
    try:
        load, cores = os.getloadavg()[0], os.cpu_count() or 1
    except (AttributeError, OSError):  # not told here
        return None
    if load < cores:
        return None
    return (
        f"note: this machine's load was {load:.1f} on {cores} cores in the last minute; beside other work training can "
        "take many times as long (OMP_NUM_THREADS=1 helps)"
    )


def announce_estimate(found: TrainingEstimate, start_up: float, runtime: Runtime, console: Console) -> None:
    other = f"{format_duration(found.other_seconds)} for samples and tests"
    parts = f"{found.steps} steps of {found.step_seconds:.3g} s, {other}"
    console.log(f"device: {runtime.describe()}")
    console.estimate(start_up + found.seconds, found.memory, f": {parts}")
    console.log(
        f"each checkpoint takes {format_bytes(found.checkpoint)} on disk, with the state that a run goes on from"
    )
    if found.memory and found.total_memory and found.memory > found.total_memory:
        console.warn(
            f"that does not fit: there are {format_bytes(found.total_memory)}; "
            "lower --buffer-size, --batch-size or --width"
        )


def show_progress(progress: TrainingProgress, bar: ProgressBar, table: MetricsTable) -> None:
    table.add(progress.metrics or {})
    metrics, shown = progress.metrics or {}, {"CE": "cross_entropy", "E(x)": "energy_data", "gap": "energy_gap"}
    text = " ".join(f"{label} {metrics[name]:.2f}" for label, name in shown.items() if name in metrics)
    bar.update(progress.phase, progress.step, progress.steps, text or None)


def show_result(result: RunResult, run_dir: Path, console: Console) -> None:
    """The table, the picture's place, and what one may do next; the checkpoint's path is the last line."""
    if console.as_json:
        console.document(
            {
                "checkpoint": str(result.checkpoint),
                "finished": True,
                "grid": str(result.grid),
                **result.summary,
            }
        )
        return
    rows = [accuracy_row(label, result.summary[name]) for name, label in ACCURACIES.items()]
    metrics = result.summary["metrics"]
    rows += [(label, f"{metrics[name]:.3f}", "", "last step") for name, label in ENERGIES.items() if name in metrics]
    events = result.summary["divergences"]
    seen = "; ".join(f"step {event['at']}: {event['what']}" for event in events)
    rows.append(("divergences", str(len(events)), "", seen))
    console.table("What was trained", COLUMNS, rows)
    console.log(f"samples: {result.grid}")
    name = name_of(run_dir)
    console.log(f"next: rjem generate {name} -n 1000; rjem eval {name}; rjem langevin {name}")
    console.result(str(result.checkpoint))


@contextlib.contextmanager
def draw_curves_at_exit(run_dir: Path, console: Console) -> Iterator[None]:
    """curves.png of the run, however it ends; that it cannot be drawn is no reason to end otherwise."""
    try:
        yield
    finally:
        from rjem_cli.engine.training.curves import write_curves

        try:
            if path := write_curves(run_dir):
                console.log(f"curves: {path}")
        except RjemError as error:
            console.warn(str(error))


def where(result: RunResult) -> str:
    """The place at which a run was stopped."""
    step, steps = result.step, result.steps
    return f"at step {step} of {steps}" if step < steps else "after the last step, before its table"


def show_stopped(result: RunResult, why: str, run_dir: Path, console: Console) -> None:
    """A run that stopped by itself before its end, as it was asked to."""
    console.log(f"{why}; {how_to_resume(run_dir)}")
    if console.as_json:
        console.document(
            {"checkpoint": str(result.checkpoint), "finished": False, "step": result.step, "steps": result.steps}
        )
    else:
        console.result(str(result.checkpoint))


def accuracy_row(label: str, score: dict[str, Any]) -> tuple[str, str, str, str]:
    low, high = score["interval_95"]
    protocol = f"{score['of']} of {score['dataset_size']} images of {score['dataset']}"
    attack = f"; {score['attack']}" if "attack" in score else ""
    return label, f"{score['value']:.2%}", f"{low:.2%} to {high:.2%}", protocol + attack
