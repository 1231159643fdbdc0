"""What `rjem train` prints: its plan, its progress, and the table at its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rjem_cli.cli.console import Console
from rjem_cli.cli.formatting import Table, format_bytes, format_duration, sparkline
from rjem_cli.cli.progress import ProgressBar
from rjem_cli.cli.resume import how_to_resume, shell_name
from rjem_cli.config.fields import format_epsilon
from rjem_cli.config.training import TrainConfig
from rjem_cli.errors import pluralize

if TYPE_CHECKING:
    from rjem_cli.engine.data.images import Splits
    from rjem_cli.engine.runtime import Runtime
    from rjem_cli.engine.training.estimate import TrainingEstimate
    from rjem_cli.engine.training.progress import TrainingProgress
    from rjem_cli.engine.training.run import RunResult


ACCURACIES = {"test_accuracy": "accuracy", "robust_accuracy": "robust accuracy"}
ENERGIES = {"energy_data": "E(x) of data", "energy_buffer": "E(x) of chains", "input_grad_norm": "|dE/dx| on data"}
RESULT_COLUMNS = ("metric", "value", "95% interval", "measured on")
LABELS = {  # metrics of a line of metrics.jsonl
    "cross_entropy": "cross-entropy",
    "val_accuracy": "accuracy (val)",
    "energy_data": "E(x) of data",
    "energy_buffer": "E(x) of chains",
    "input_grad_norm": "|dE/dx| on data",
    "saturation": "saturation",
    "grad_norm": "gradient norm",
    "divergences": "divergences",
    "images_per_second": "images/s",
}
PERCENTAGES = ("val_accuracy", "saturation")
LIVE_COLUMNS = ("metric", "now", "history")
MAX_HISTORY = 512  # values; a longer history loses every second one


def log_plan(config: TrainConfig, run_dir: Path, console: Console) -> None:
    """The network, the attack with its radius in both units, the chains, and what will be written."""
    attack, chains = "no attack", "no p(x) term"
    if config.attacks:
        attack = f"PGD {config.norm} eps {format_epsilon(config.adv_eps, config.norm)}, {config.pgd_steps} steps"
    if config.px_weight:
        step = config.sgld_step_size * config.inner_steps
        chains = f"SGLD {config.sgld_steps} steps, step size {step:g}, noise {config.noise_std:g}"
    passes = config.pgd_steps * config.attacks + config.sgld_steps * bool(config.px_weight)
    length = f"{config.steps} steps" if config.steps else f"{config.epochs:g} epochs"
    norm = "no normalisation" if config.norm_layer == "none" else f"{config.norm_layer} norm"
    console.log(f"{config.architecture} ({norm}) on {config.data or config.dataset}, {length}, seed {config.seed}")
    console.log(f"{attack}; {chains}; {passes} gradient steps before each update")
    console.log(f"writes {run_dir}: config.yaml, metrics.jsonl, checkpoints, samples, summary.json, curves.png")


def log_inputs(splits: Splits, runtime: Runtime, console: Console) -> None:
    """The device, what was read, and the number of images."""
    console.log(f"device: {runtime.describe()}")
    sizes = f"{len(splits.train)} + {len(splits.val)} + {len(splits.test)} images (train, val, test)"
    console.log(splits.read_summary)
    console.log(f"data: {splits.name}, {pluralize(len(splits.class_names), 'class', 'classes')}, {sizes}")
    warn_of_one_class(len(splits.class_names), console)


def warn_of_one_class(count: int, console: Console) -> None:
    if count == 1:
        console.warn("all images are of one class, so the classifier learns nothing")


def log_estimate(estimate: TrainingEstimate, start_up: float, runtime: Runtime, console: Console) -> None:
    """`start_up`: seconds until training starts."""
    other = f"{format_duration(estimate.other_seconds)} for samples and tests"
    parts = f"{estimate.steps} steps of {estimate.step_seconds:.3g} s, {other}"
    console.log(f"device: {runtime.describe()}")
    console.estimate(start_up + estimate.seconds, estimate.memory, f": {parts}")
    console.log(f"each checkpoint takes {format_bytes(estimate.checkpoint)} on disk, with the state to resume from")
    if estimate.memory and estimate.total_memory and estimate.memory > estimate.total_memory:
        console.warn(
            f"that does not fit into {format_bytes(estimate.total_memory)} of memory; lower --buffer-size, "
            "--batch-size or --width"
        )


def show_progress(progress: TrainingProgress, bar: ProgressBar, table: MetricsTable) -> None:
    metrics = progress.metrics or {}
    table.add(metrics)
    labels = {"CE": "cross_entropy", "E(x)": "energy_data", "gap": "energy_gap"}
    text = " ".join(f"{label} {metrics[name]:.2f}" for label, name in labels.items() if name in metrics)
    bar.update(progress.phase, progress.step, progress.steps, text or None)


def show_result(result: RunResult, run_dir: Path, console: Console) -> None:
    """The table, the sample grid's path, and commands to continue with; the last line is the checkpoint's path."""
    if console.as_json:
        paths = {"checkpoint": str(result.checkpoint), "finished": True, "grid": str(result.grid)}
        console.document({**paths, **result.summary})
        return
    rows = [accuracy_row(label, result.summary[name]) for name, label in ACCURACIES.items()]
    metrics, events = result.summary["metrics"], result.summary["divergences"]
    rows += [(label, f"{metrics[name]:.3f}", "", "last step") for name, label in ENERGIES.items() if name in metrics]
    details = "; ".join(f"step {event['diverged_at']}: {event['reason']}" for event in events)
    rows.append(("divergences", str(len(events)), "", details))
    console.table("Training result", RESULT_COLUMNS, rows)
    name = shell_name(run_dir)
    console.log(f"samples: {result.grid}")
    console.log(f"next: rjem generate {name} -n 1000; rjem eval {name}; rjem langevin {name}")
    console.result(str(result.checkpoint))


def accuracy_row(label: str, accuracy: dict[str, Any]) -> tuple[str, str, str, str]:
    low, high = accuracy["interval_95"]
    protocol = f"{accuracy['of']} of {accuracy['dataset_size']} images of {accuracy['dataset']}"
    attack = f"; {accuracy['attack']}" if "attack" in accuracy else ""
    return label, f"{accuracy['value']:.2%}", f"{low:.2%} to {high:.2%}", protocol + attack


def describe_stop(result: RunResult, run_dir: Path) -> str:
    """Where a run was stopped, and how to resume it."""
    step, steps = result.step, result.steps
    where = f"at step {step} of {steps}" if step < steps else "after the last step, before its evaluation"
    return f"stopped {where}; {how_to_resume(run_dir)}"


def show_stopped(result: RunResult, reason: str, run_dir: Path, console: Console) -> None:
    """A run that stopped for this reason."""
    console.log(f"{reason}: {describe_stop(result, run_dir)}")
    if console.as_json:
        progress = {"finished": False, "step": result.step, "steps": result.steps}
        console.document({"checkpoint": str(result.checkpoint), **progress})
    else:
        console.result(str(result.checkpoint))


@dataclass
class MetricsTable:
    """The values of each metric, one for each line of metrics."""

    histories: dict[str, list[float]] = field(default_factory=dict)

    def add(self, metrics: dict[str, float]) -> None:
        for name in LABELS:
            if name in metrics:
                history = self.histories.setdefault(name, [])
                history.append(metrics[name])
                if len(history) > MAX_HISTORY:
                    del history[-2::-2]  # keeps the last one

    def table(self) -> Table:
        rows = [
            (label, f"{history[-1]:.1%}" if name in PERCENTAGES else f"{history[-1]:.4g}", sparkline(history))
            for name, label in LABELS.items()
            if (history := self.histories.get(name))
        ]
        return "", LIVE_COLUMNS, rows
