"""`rjem generate`: samples from a checkpoint, in the three modes of the paper."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rjem_cli import paths
from rjem_cli.config import GenerateConfig, describe_epsilon
from rjem_cli.errors import ConfigError
from rjem_cli.interface.console import Console
from rjem_cli.interface.options import ConfigFile, DryRun, EpsSpace, Json, PrintConfig, Quiet, with_knobs
from rjem_cli.interface.settings import settle_command

if TYPE_CHECKING:
    from rjem_cli.engine.chains.pipeline import SamplePlan


@with_knobs(GenerateConfig)
def generate(
    flags: dict[str, Any],
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            help="A checkpoint, a run's name or folder [the newest run].",
            show_default=False,
            autocompletion=paths.run_names,
        ),
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
    settled = settle_command(GenerateConfig, flags, config_file, eps_space, base=None)
    config = settled.config
    if print_config:
        console.result(settled.to_yaml().rstrip())
        return
    output = sample_folder_path(config.output)
    path = paths.find_checkpoint(checkpoint)

    from rjem_cli.engine.model.checkpoint import load_checkpoint
    from rjem_cli.engine.model.frozen import freeze
    from rjem_cli.engine.runtime import start_runtime
    from rjem_cli.engine.sampling import folder
    from rjem_cli.engine.sampling.generate import describe_samples, parse_classes, prior_of, settle_plan
    from rjem_cli.engine.sampling.generate import generate as sample

    runtime = start_runtime(config.device, config.precision)
    loaded = load_checkpoint(path, runtime.device)
    plan = settle_plan(config, loaded.info.config)
    classes = parse_classes(config.classes, loaded.info.class_names)
    names = ", ".join(loaded.info.class_names[label] for label in classes)
    planned = loaded.info.config.steps or 0
    unfinished = f" of {planned}, unfinished" if loaded.info.step < planned else ""
    console.say(f"checkpoint: {path} (step {loaded.info.step}{unfinished}, {loaded.info.data_name})")
    console.say(f"device: {runtime.describe()}")
    console.say(f"{config.count} samples of {names} to {output}, seed {config.seed}")
    console.say(f"{describe_plan(plan)}; {plan.gradient_steps * config.count} gradient steps in all")
    if dry_run:
        return
    prior = prior_of(loaded.info, config.data).to(runtime.device)
    folder.prepare_folder(output, config.overwrite)
    started = time.perf_counter()
    logits_of, size = runtime.logits(freeze(loaded.model)), config.batch_size
    batches = sample(
        logits_of, prior, plan, classes, config.count, seed=config.seed, batch_size=size, device=runtime.device
    )
    meta = describe_samples(loaded, plan, classes, config, runtime)
    with console.bar() as bar:
        for done in folder.write_folder(output, batches, loaded.info.class_names, config.seed, meta):
            bar.update("generating", done, config.count)
    console.say(f"{config.count} samples in {time.perf_counter() - started:.1f} s; look at {output / 'grid.png'}")
    if as_json:
        console.document({"output": str(output), **meta})
    else:
        console.result(str(output.absolute()))


def sample_folder_path(output: str) -> Path:
    """Archives and streams are not written yet, and a folder named x.tar would only mislead."""
    if output == "-" or Path(output).suffix in (".npz", ".tar", ".zip"):
        raise ConfigError(f"-o {output}: this version writes folders of PNG files; give a folder")
    return Path(output)


def describe_plan(plan: SamplePlan) -> str:
    stages = ["prior"]
    if plan.attacks:
        stages.append(f"targeted PGD {plan.norm} eps {describe_epsilon(plan.attack_eps)}, {plan.attack_steps} steps")
    if plan.mode == "combined":
        stages.append(f"contrast {plan.contrast:g}")
    if plan.chains:
        stages.append(f"SGLD on E(x, y), {plan.sgld_steps} steps of {plan.sgld_step_size:g}, noise {plan.noise_std:g}")
    return f"mode {plan.mode}: " + " -> ".join(stages)
