"""`rjem attack`: how much of a checkpoint's accuracy is left under attack."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rjem_cli.config import AttackConfig
from rjem_cli.interface.attack_view import describe_attack, show_attack
from rjem_cli.interface.chains_view import describe_checkpoint
from rjem_cli.interface.console import Console
from rjem_cli.interface.options import Call, CheckpointArgument, with_knobs

if TYPE_CHECKING:
    from rjem_cli.engine.evaluation.job import AttackJob


@with_knobs(AttackConfig, ranks=True)
def attack(call: Call[AttackConfig], checkpoint: CheckpointArgument = None) -> None:
    """Attack a checkpoint and measure what still stands: accuracy with 95 % intervals, per class and radius.

    An image counts as robust if no restart at its radius or a smaller one breaks it.

    Examples:

      rjem attack --eps 8/255 --restarts 5

      rjem attack my-run --eps 2/255,8/255 --method apgd --save attacked/

      rjem attack my-run --norm l2 --eps 0.5 --eps-space pixel --target cat

      rjem attack my-run --standard --limit 500
    """
    console, ranks = call.console, call.ranks
    config, path = ranks.from_first(lambda: settled(call, checkpoint))

    from rjem_cli.engine.evaluation.job import attack_results, clean_state, forecast, prepare
    from rjem_cli.engine.report.attack import AttackReport
    from rjem_cli.engine.timing import foreseen_bytes

    job = ranks.jointly(lambda: prepare(config, path, ranks, console.warn))
    job.runtime.check_ranks()
    job.runtime.check_work(f"the network {job.checkpoint.sha256()}")
    announce(job, console)
    if call.dry_run:
        seconds = call.seconds_so_far() + forecast(job)
        console.forecast(seconds, foreseen_bytes(job.runtime.device), at_most=True)
        return
    clean = clean_state(job)
    with ranks.opened_by_first(lambda: AttackReport(job, clean)) as report, console.bar() as bar:

        def watch(done: int, total: int, text: str) -> None:
            bar.update("attacking", done, total, text)

        for result in attack_results(job, clean, watch, console.say):
            if report is not None:
                report.add(result)
    if report is None:
        return
    if call.as_json:
        console.document(report.document)
        return
    show_attack(report.document, console)
    if report.folder is not None and not call.quiet:
        console.say("attack.json, curve.png and the images are in")
        console.result(str(report.folder.absolute()))


def settled(call: Call[AttackConfig], checkpoint: str | None) -> tuple[AttackConfig, Path | None]:
    """Raises ConfigError or AbsentError."""
    config = call.settle()
    return config, call.find_network(config, checkpoint)


def announce(job: AttackJob, console: Console) -> None:
    console.say(describe_checkpoint(job.checkpoint))
    console.say(f"device: {job.runtime.describe()}")
    console.say(f"{len(job.chosen)} of {job.of} images of {job.source}, spread evenly")
    if job.config.standard:
        console.say(f"AutoAttack, standard version, {job.plan.norm}")
        return
    steps = job.plan.gradient_steps * len(job.radii) * len(job.chosen)
    console.say(f"{describe_attack(job.plan, job.radii)}; at most {steps} gradient steps in all")
