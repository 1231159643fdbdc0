"""`rjem generate`: samples from a checkpoint, in the three modes of the paper."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from rjem_cli import __version__, paths
from rjem_cli.config import GenerateConfig, describe_epsilon
from rjem_cli.interface.console import Console
from rjem_cli.interface.options import ConfigFile, DryRun, EpsSpace, Json, PrintConfig, Quiet, with_knobs
from rjem_cli.interface.settings import Layer, environment_layer, file_layer, settle


@with_knobs(GenerateConfig)
def generate(
    flags: dict[str, Any],
    checkpoint: Annotated[
        str | None, typer.Argument(help="A checkpoint, a run's name or folder [the newest run].", show_default=False)
    ] = None,
    config_file: ConfigFile = None,
    eps_space: EpsSpace = "model",
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Generate images of chosen classes. What is not given is as the checkpoint was trained to sample.

    Examples:

      rjem generate --class 3 -n 100

      rjem generate my-run --class cat,dog --mode combined -n 10000 -o samples/
    """
    console = Console(quiet, as_json)
    layers = [file_layer(config_file)] if config_file else []
    settled = settle(
        GenerateConfig, [*layers, environment_layer(GenerateConfig, eps_space), Layer("flag", flags, eps_space)]
    )
    config = settled.config
    if print_config:
        console.result(settled.to_yaml().rstrip())
        return
    path = paths.find_checkpoint(checkpoint)

    from rjem_cli.engine.model.checkpoint import load_checkpoint
    from rjem_cli.engine.model.frozen import freeze
    from rjem_cli.engine.runtime import start_runtime
    from rjem_cli.engine.sampling import folder as sample_folder
    from rjem_cli.engine.sampling.generate import generate as sample
    from rjem_cli.engine.sampling.generate import parse_classes, prior_of, settle_plan

    runtime = start_runtime(config.device, config.precision)
    loaded = load_checkpoint(path, runtime.device)
    info = loaded.info
    plan = settle_plan(config, info.config)
    classes = parse_classes(config.classes, info.class_names)
    output = Path(config.output)
    console.say(f"checkpoint: {path} (step {info.step}, {info.data_name})")
    names = ", ".join(info.class_names[label] for label in classes)
    console.say(f"{config.count} samples of {names} to {output}, seed {config.seed}")
    console.say(describe_plan(plan))
    if dry_run:
        return
    sample_folder.prepare_folder(output, config.overwrite)
    prior = prior_of(info, config.data).to(runtime.device)
    started = time.perf_counter()
    meta = {
        "rjem": __version__,
        "checkpoint": {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "step": info.step},
        "dataset": {"name": info.data_name, "train_digest": info.data_digest},
        "plan": asdict(plan),
        "gradient_steps_per_sample": plan.gradient_steps,
        "count": config.count,
        "seed": config.seed,
        "classes": [info.class_names[label] for label in classes],
        "selection": "none",
        "device": runtime.describe(),
    }
    batches = sample(
        freeze(loaded.model),
        prior,
        plan,
        classes,
        config.count,
        seed=config.seed,
        batch_size=config.batch_size,
        runtime=runtime,
    )
    with console.bar() as bar:
        for done in sample_folder.write_folder(output, batches, info.class_names, config.seed, meta):
            bar.update("generating", done, config.count)
    console.say(f"{config.count} samples in {time.perf_counter() - started:.1f} s; look at {output / 'grid.png'}")
    if as_json:
        console.document({"output": str(output), **meta})
    else:
        console.result(str(output))


def describe_plan(plan: Any) -> str:
    stages = ["prior"]
    if plan.attacks:
        stages.append(f"targeted PGD {plan.norm} eps {describe_epsilon(plan.attack_eps)}, {plan.attack_steps} steps")
    if plan.mode == "combined":
        stages.append(f"contrast {plan.contrast:g}")
    if plan.chains:
        stages.append(f"SGLD on E(x, y), {plan.sgld_steps} steps of {plan.sgld_step_size:g}, noise {plan.noise_std:g}")
    return f"mode {plan.mode}: " + " -> ".join(stages)
