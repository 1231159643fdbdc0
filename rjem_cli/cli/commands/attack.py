"""`rjem attack`: the accuracy of a checkpoint under attack."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rjem_cli.cli.attack_output import describe_attack, show_attack
from rjem_cli.cli.console import Console
from rjem_cli.cli.options import CheckpointArgument, CommandCall, with_options
from rjem_cli.cli.sampling_output import describe_checkpoint
from rjem_cli.config.scoring import AttackConfig

if TYPE_CHECKING:
    from rjem_cli.engine.attacks.attack_report import AttackJob


@with_options(AttackConfig)
def attack(call: CommandCall[AttackConfig], checkpoint: CheckpointArgument = None) -> None:
    """Attack a checkpoint and measure its robust accuracy, with 95 % intervals, per class and radius.

    An image counts as robust if no restart at its radius or a smaller one succeeds.

    Examples:

      rjem attack --eps 8/255 --restarts 5

      rjem attack my-run --eps 2/255,8/255 --method apgd --save attacked/

      rjem attack my-run --norm l2 --eps 0.5 --eps-space pixel --target cat

      rjem attack my-run --standard --limit 500
    """
    console, config = call.console, call.resolve()
    path = call.find_network(config, checkpoint)

    from rjem_cli.engine.attacks.attack_report import open_report, prepare_attack
    from rjem_cli.engine.attacks.autoattack import estimate_cost
    from rjem_cli.engine.attacks.robustness import evaluate_clean
    from rjem_cli.engine.memory import estimated_bytes

    job = prepare_attack(config, path, console.warn)
    announce(job, console)
    if call.dry_run:
        console.estimate(call.elapsed() + job.estimate_seconds(), estimated_bytes(job.device), at_most=True)
        return
    clean = evaluate_clean(job)
    if config.standard:
        cost = estimate_cost(job, clean, len(job.radii))
        console.log(
            f"at most {cost.gradient_passes} gradient and {cost.forward_passes} forward passes of one image, about "
            f"{cost.seconds / 60:.1f} min on this device; run the same command again to resume"
        )
    with open_report(job, clean) as report, console.progress_bar() as bar:
        for result in job.run(clean, bar.update, console.log):
            report.add(result)
    if call.as_json:
        console.document(report.document)
        return
    show_attack(report.document, console)
    if report.folder is not None and not call.quiet:
        console.log(f"wrote attack.json, curve.png and the images to {report.folder}")
        console.result(str(report.folder.absolute()))


def announce(job: AttackJob, console: Console) -> None:
    """Log the checkpoint, the device, the images and the attack."""
    console.log(describe_checkpoint(job.model.checkpoint))
    for note in job.model.checkpoint.notes:
        console.note(note)
    console.log(f"device: {job.model.runtime.describe()}")
    console.log(job.read_summary)
    console.log(f"{len(job.dataset)} of {job.total} images of {job.source}, evenly spaced")
    if job.config.standard:
        console.log(f"AutoAttack, standard version, {job.plan.norm}")
        return
    steps = job.plan.gradient_steps * len(job.radii) * len(job.dataset)
    console.log(f"{describe_attack(job.plan, job.radii)}; at most {steps} gradient steps")
