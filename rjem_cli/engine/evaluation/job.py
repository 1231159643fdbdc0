"""One call of `rjem attack`: what is attacked, how, and the results as they come."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rjem_cli.config import AttackConfig
from rjem_cli.engine.chains.pgd import Logits
from rjem_cli.engine.data.classes import parse_class
from rjem_cli.engine.evaluation.attack import AttackSet, CleanState, EpsResult, Report, attack_images, look_at_clean
from rjem_cli.engine.evaluation.autoattack import Cost, autoattack_images, check_autoattack, cost_of
from rjem_cli.engine.evaluation.choose import attack_set, choose_images, choose_radii
from rjem_cli.engine.evaluation.search import AttackPlan
from rjem_cli.engine.model.checkpoint import Checkpoint
from rjem_cli.engine.model.own import load_network
from rjem_cli.engine.quiet import unheard
from rjem_cli.engine.ranks import ALONE, Ranks
from rjem_cli.engine.room import Room
from rjem_cli.engine.runtime import Runtime, start_runtime
from rjem_cli.engine.timing import fitting, pass_seconds


@dataclass(frozen=True)
class AttackJob:
    """All that is settled before the first step. Radii in model units, ascending."""

    config: AttackConfig
    checkpoint: Checkpoint
    runtime: Runtime
    logits_of: Logits
    plan: AttackPlan
    radii: tuple[float, ...]
    chosen: AttackSet
    source: str
    of: int
    room: Room


def prepare(
    config: AttackConfig, path: Path | None, ranks: Ranks = ALONE, say: Callable[[str], None] = unheard
) -> AttackJob:
    """Read checkpoint and images. `say` hears of smaller batches. Raises ConfigError, AbsentError or DataError."""
    runtime = start_runtime(config, reproducible=True, ranks=ranks)
    checkpoint = load_network(config, path, runtime.device)
    info = checkpoint.info
    if config.standard:
        check_autoattack(len(info.class_names))
    target = None if config.target is None else parse_class(config.target, info.class_names, "--target")
    norm, radii = choose_radii(config, info)
    found = choose_images(config, info)
    chosen = attack_set(found, target, config.targeted is not None, config.seed)
    plan = AttackPlan(
        norm=norm,
        method=config.method,
        steps=config.steps,
        step_size=config.step_size,
        loss=config.loss,
        restarts=config.restarts,
        start=config.start,
        iterate=config.iterate,
        targeted=chosen.targets is not None,
    )
    logits_of = runtime.frozen(checkpoint.model)
    room = Room(config.batch_size, say)
    return AttackJob(config, checkpoint, runtime, logits_of, plan, radii, chosen, found.source, found.of, room)


def forecast(job: AttackJob) -> float:
    """Seconds here if no image broke, from one batch."""
    device, shape = job.runtime.device, job.chosen.images.image_shape
    if job.config.standard:
        return autoattack_cost(job, clean_state(job)).seconds
    batch_size = min(fitting(job.logits_of, shape, job.room, device), len(job.chosen))
    a_pass = pass_seconds(job.logits_of, shape, batch_size, device)
    batches = math.ceil(math.ceil(len(job.chosen) / batch_size) / job.runtime.ranks.world)
    return batches * (1 + job.plan.passes * len(job.radii)) * a_pass


def autoattack_cost(job: AttackJob, clean: CleanState) -> Cost:
    return cost_of(job.logits_of, job.chosen, clean, len(job.radii), job.runtime, job.config.batch_size)


def clean_state(job: AttackJob) -> CleanState:
    return look_at_clean(job.logits_of, job.plan, job.chosen, job.runtime.device, job.room, job.runtime.ranks)


def attack_results(
    job: AttackJob, clean: CleanState, report: Report, say: Callable[[str], None]
) -> Iterator[EpsResult]:
    """One result a radius, the smallest first. `say` hears what AutoAttack will cost."""
    return standard_results(job, clean, report, say) if job.config.standard else pgd_results(job, clean, report)


def pgd_results(job: AttackJob, clean: CleanState, report: Report) -> Iterator[EpsResult]:
    return attack_images(
        job.logits_of,
        job.plan,
        job.chosen,
        clean,
        job.radii,
        device=job.runtime.device,
        room=job.room,
        report=report,
        ranks=job.runtime.ranks,
    )


def standard_results(
    job: AttackJob, clean: CleanState, report: Report, say: Callable[[str], None]
) -> Iterator[EpsResult]:
    """AutoAttack, its cost said first."""
    cost = autoattack_cost(job, clean)
    say(
        f"if no image broke: {cost.gradient_passes} gradient and {cost.forward_passes} forward passes, one image each, "
        f"about {cost.seconds / 60:.1f} min here; after a stop the same call goes on"
    )
    return autoattack_images(
        job.logits_of,
        job.chosen,
        clean,
        list(job.radii),
        job.plan.norm,
        checkpoint_sha256=job.checkpoint.sha256(),
        runtime=job.runtime,
        batch_size=job.config.batch_size,
        report=report,
        say=say,
    )
