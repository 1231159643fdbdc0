"""`rjem train`: train a Robust JEM, or any of its special cases, on a built-in data set or on your images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rjem_cli import paths
from rjem_cli.config import TrainConfig, describe_epsilon
from rjem_cli.errors import AbsentError, ConfigError, InterruptedRunError
from rjem_cli.interface.console import Bar, Console
from rjem_cli.interface.options import ConfigFile, DryRun, EpsSpace, Json, PrintConfig, Quiet, with_knobs
from rjem_cli.interface.settings import (
    Layer,
    Settled,
    environment_layer,
    file_layer,
    preset_layer,
    preset_names,
    settle,
)
from rjem_cli.interface.signals import stop_on_signals

if TYPE_CHECKING:
    from rjem_cli.engine.training.run import RunResult
    from rjem_cli.engine.training.trainer import Progress

DEFAULT_PRESET = "quickstart"


@with_knobs(TrainConfig)
def train(
    flags: dict[str, Any],
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"Start from these values [{DEFAULT_PRESET}].", autocompletion=preset_names),
    ] = None,
    config_file: ConfigFile = None,
    resume: Annotated[
        str | None, typer.Option(metavar="auto|RUN", help="Go on with this run (auto: --run, or the newest).")
    ] = None,
    eps_space: EpsSpace = "model",
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train one network as classifier, robust classifier and generator.

    Values: flag > RJEM_... variable > --config file > --preset > default.

    Examples:

      rjem train --preset quickstart

      rjem train --preset cifar10-small --data cifar10-train.tar.xz --adv-eps 8/255
    """
    console = Console(quiet, as_json)
    resumed = find_resumed(resume, flags.get("run")) if resume else None
    settled = settle_training(flags, preset, config_file, eps_space, resumed)
    config = settled.config
    if print_config:
        console.result(settled.to_yaml().rstrip())
        return
    run_dir = resumed or new_run_dir(config.run or f"{preset or DEFAULT_PRESET}-{time.strftime('%Y%m%d-%H%M%S')}")
    describe(config, run_dir, console)
    if resumed:
        console.say(f"goes on from step {int(paths.checkpoints_in(resumed)[-1].stem.removeprefix('step-'))}")
    if dry_run:
        return

    from rjem_cli.engine.data.load import load_splits
    from rjem_cli.engine.runtime import start_runtime
    from rjem_cli.engine.training.run import run_training

    runtime = start_runtime(config.device, config.precision)
    splits = load_splits(config)
    console.say(f"device: {runtime.describe()}")
    console.say(
        f"data: {splits.name}, {len(splits.train)} + {len(splits.val)} + {len(splits.test)} images (train, val, test)"
    )
    with stop_on_signals(console.say) as stop, console.bar() as bar:

        def watch(progress: Progress) -> None:
            if stop() and progress.phase != "training":  # the checkpoint is written; only its table is not
                raise KeyboardInterrupt
            show(progress, bar)

        result = run_training(
            config, splits, runtime, run_dir, resume=resumed is not None, watch=watch, should_stop=stop
        )
    if not result.finished:
        assert stop.signal_number is not None
        step = f"step {result.summary['step']} of {result.summary['steps']}"
        raise InterruptedRunError(
            f"stopped at {step}; go on with: rjem train --run {run_dir.name} --resume auto", stop.signal_number
        )
    finish(result, console)


def find_resumed(resume: str, run: Any) -> Path:
    name = resume if resume != "auto" else run
    folder = paths.find_run(str(name)) if name else paths.find_checkpoint(None).parent.parent
    if folder is None:
        raise AbsentError(f"run {name} has no checkpoint to resume from in {paths.runs_dir()}")
    return folder


def settle_training(
    flags: dict[str, Any], preset: str | None, config_file: str | None, eps_space: str, resumed: Path | None
) -> Settled[TrainConfig]:
    """The layers of a training run; a resumed one starts from its own saved config instead of a preset."""
    if eps_space not in ("model", "pixel"):
        raise ConfigError(f"--eps-space {eps_space!r} is unknown; give model or pixel")
    if resumed and preset:
        raise ConfigError("--preset cannot change a run that is resumed; give single flags, such as --epochs")
    base = (
        Layer(f"run {resumed.name}", file_layer(str(resumed / "config.yaml")).values)
        if resumed
        else preset_layer(preset or DEFAULT_PRESET)
    )
    layers = [base, *([file_layer(config_file)] if config_file else []), environment_layer(TrainConfig, eps_space)]
    return settle(TrainConfig, [*layers, Layer("flag", flags, eps_space)])


def new_run_dir(name: str) -> Path:
    if Path(name).name != name or name.startswith("."):
        raise ConfigError(f"--run {name!r}: give a plain name, without folders")
    run_dir = paths.runs_dir() / name
    if paths.checkpoints_in(run_dir):
        raise ConfigError(
            f"run {name} exists already in {paths.runs_dir()}; go on with --resume auto, or take another --run"
        )
    return run_dir


def describe(config: TrainConfig, run_dir: Path, console: Console) -> None:
    attacked = config.pgd_steps and config.adv_eps
    attack = (
        f"PGD {config.norm} eps {describe_epsilon(config.adv_eps)}, {config.pgd_steps} steps"
        if attacked
        else "no attack"
    )
    step = config.sgld_step_size * config.inner_steps
    chains = (
        f"SGLD {config.sgld_steps} steps of {step:g}, noise {config.noise_std:g}"
        if config.px_weight
        else "no p(x) term"
    )
    passes = config.pgd_steps * bool(attacked) + config.sgld_steps * bool(config.px_weight)
    length = f"{config.steps} steps" if config.steps else f"{config.epochs:g} epochs"
    network = f"WRN-{config.depth}-{config.width} ({config.norm_layer} norm)"
    console.say(f"{network} on {config.data or config.dataset}, {length}, seed {config.seed}")
    console.say(f"{attack}; {chains}; {passes} gradient steps before each update")
    console.say(f"writes {run_dir}: config.yaml, metrics.jsonl, checkpoints, samples, summary.json")


def show(progress: Progress, bar: Bar) -> None:
    text = ""
    if progress.metrics:
        shown = {"CE": "cross_entropy", "E(x)": "energy_data", "gap": "energy_gap"}
        text = " ".join(
            f"{label} {progress.metrics[name]:.2f}" for label, name in shown.items() if name in progress.metrics
        )
    bar.update(progress.phase, progress.step, progress.steps, text or None)


def finish(result: RunResult, console: Console) -> None:
    """The table, the picture's place, and the checkpoint's path as the last line."""
    if console.as_json:
        console.document({"checkpoint": str(result.checkpoint), "grid": str(result.grid), **result.summary})
        return
    rows = []
    for name, label in (("test_accuracy", "accuracy"), ("robust_accuracy", "robust accuracy")):
        score = result.summary[name]
        low, high = score["interval_95"]
        protocol = f"{score['images']} of {score['of']} images of {score['dataset']}" + (
            f"; {score['attack']}" if "attack" in score else ""
        )
        rows.append((label, f"{score['value']:.2%}", f"{low:.2%} to {high:.2%}", protocol))
    metrics = result.summary["metrics"]
    for name, label in (
        ("energy_data", "E(x) of data"),
        ("energy_buffer", "E(x) of chains"),
        ("r1", "R1, |dE/dx| on data"),
    ):
        if name in metrics:
            rows.append((label, f"{metrics[name]:.3f}", "", "last step"))
    console.table("What was trained", ("what", "value", "95% interval", "measured on"), rows)
    console.say(f"samples: {result.grid}")
    console.result(str(result.checkpoint))
