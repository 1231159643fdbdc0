"""`rjem attack`: how much of a checkpoint's accuracy is left under attack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rjem_cli import paths
from rjem_cli.config import AttackConfig
from rjem_cli.interface.attack_view import describe_attack, show_attack
from rjem_cli.interface.chains_view import describe_checkpoint
from rjem_cli.interface.console import Console
from rjem_cli.interface.options import (
    CheckpointArgument,
    ConfigFile,
    DryRun,
    EpsSpace,
    Json,
    PrintConfig,
    Quiet,
    with_knobs,
)
from rjem_cli.interface.settings import settle_command

if TYPE_CHECKING:
    from rjem_cli.engine.evaluation.job import AttackJob


@with_knobs(AttackConfig)
def attack(
    flags: dict[str, Any],
    checkpoint: CheckpointArgument = None,
    config_file: ConfigFile = None,
    eps_space: EpsSpace = "model",
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Attack a checkpoint and measure what still stands: accuracy with 95 % intervals, per class and radius.

    An image counts as robust if no restart at its radius or a smaller one breaks it.

    Examples:

      rjem attack --eps 8/255 --restarts 5

      rjem attack my-run --eps 2/255,4/255,8/255 --method apgd --steps 100 --save attacked/

      rjem attack my-run --norm l2 --eps 0.5 --target cat

      rjem attack my-run --standard --limit 500
    """
    console = Console(quiet, as_json)
    settled = settle_command(AttackConfig, flags, config_file, eps_space, base=None)
    config = settled.config
    if print_config:
        console.result(settled.to_yaml().rstrip())
        return
    path = paths.find_checkpoint(checkpoint)

    from rjem_cli.engine.evaluation.job import attack_results, clean_state, prepare
    from rjem_cli.engine.report.attack import AttackReport

    job = prepare(config, path)
    announce(job, console)
    if dry_run:
        return
    clean = clean_state(job)
    report = AttackReport(job, clean)
    with console.bar() as bar:

        def watch(done: int, total: int, text: str) -> None:
            bar.update("attacking", done, total, text)

        for result in attack_results(job, clean, watch, console.say):
            report.add(result)
    if as_json:
        console.document(report.document)
        return
    show_attack(report.document, console)
    if report.folder is not None and not quiet:
        console.say("attack.json, curve.png and the images are in")
        console.result(str(report.folder.absolute()))


def announce(job: AttackJob, console: Console) -> None:
    console.say(describe_checkpoint(job.checkpoint.path, job.checkpoint.info))
    console.say(f"device: {job.runtime.describe()}")
    console.say(f"{len(job.chosen)} of {job.of} images of {job.source}, spread evenly")
    if job.config.standard:
        console.say(f"AutoAttack, standard version, {job.plan.norm}")
        return
    steps = job.plan.gradient_steps * len(job.radii) * len(job.chosen)
    console.say(f"{describe_attack(job.plan, job.radii)}; at most {steps} gradient steps in all")
