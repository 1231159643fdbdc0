"""One call of `rjem attack`: what is attacked and how, the attack, its report and its files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rjem_cli.config import AttackConfig
from rjem_cli.engine.chains.pgd import Logits
from rjem_cli.engine.evaluation.attack import (
    AttackSet,
    CleanState,
    EpsResult,
    Report,
    attack_images,
    look_at_clean,
)
from rjem_cli.engine.evaluation.attacked_files import write_and_measure
from rjem_cli.engine.evaluation.autoattack import NAME, autoattack_images, check_autoattack, estimate_cost
from rjem_cli.engine.evaluation.choose import choose_images
from rjem_cli.engine.evaluation.search import AttackPlan
from rjem_cli.engine.model.checkpoint import Checkpoint, load_checkpoint
from rjem_cli.engine.model.frozen import freeze
from rjem_cli.engine.report.attack import describe_clean, describe_protocol, describe_result, score
from rjem_cli.engine.report.figures import epsilon_curve
from rjem_cli.engine.runtime import Runtime, start_runtime
from rjem_cli.engine.sampling.request import parse_class
from rjem_cli.errors import ConfigError
from rjem_cli.paths import expand, own_folder, write_atomically

OUR_NAMES = re.compile(r"attack\.json|curve\.png|eps-[^/]+/(\d{6,}\.png|images\.csv)")


@dataclass(frozen=True)
class AttackJob:
    """All that is settled before the first step. Radii in model units, ascending."""

    config: AttackConfig
    checkpoint: Checkpoint
    runtime: Runtime
    logits_of: Logits
    plan: AttackPlan
    norm: str
    radii: tuple[float, ...]
    chosen: AttackSet
    source: str
    of: int


def prepare(config: AttackConfig, path: Path) -> AttackJob:
    """Read checkpoint and images. Raises ConfigError, AbsentError or DataError."""
    runtime = start_runtime(config.device, config.precision)
    checkpoint = load_checkpoint(path, runtime.device)
    info = checkpoint.info
    if config.standard:
        check_autoattack(len(info.class_names))
    target = None if config.target is None else parse_class(config.target, info.class_names, "--target")
    radii = config.eps if config.eps is not None else (info.config.adv_eps,)
    if not radii:
        raise ConfigError("--eps names no radius; give one, such as 8/255")
    chosen, source, of = choose_images(config, info, target)
    norm = config.norm or info.config.norm
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
    logits_of = runtime.logits(freeze(checkpoint.model))
    return AttackJob(config, checkpoint, runtime, logits_of, plan, norm, tuple(sorted(set(radii))), chosen, source, of)


def run_attack(job: AttackJob, report: Report, say: Callable[[str], None]) -> dict[str, Any]:
    """The report as plain data; with --save its files too, a radius at a time, so that a stop leaves those done.
    Raises ConfigError where the folder holds something else."""
    config, device = job.config, job.runtime.device
    if config.save and own_folder(expand(config.save), "--save", OUR_NAMES, config.overwrite):
        raise ConfigError(f"--save {config.save} holds results already; add --overwrite, or give another folder")
    clean = look_at_clean(job.logits_of, job.plan, job.chosen, device, config.batch_size)
    attack = NAME if config.standard else job.plan
    found: dict[str, Any] = {
        "protocol": describe_protocol(attack, job.chosen, job.source, job.of, job.checkpoint, job.runtime),
        "clean": describe_clean(clean, job.chosen),
        "results": [],
    }
    results = standard_results(job, clean, report, say) if config.standard else pgd_results(job, clean, report)
    for result in results:
        row = describe_result(result, clean, job.chosen, job.norm)
        if config.save:
            row["files"] = save_result(job, result, clean)
        found["results"].append(row)
        if config.save:
            save_report(expand(config.save), found)
    return found


def pgd_results(job: AttackJob, clean: CleanState, report: Report) -> Iterator[EpsResult]:
    return attack_images(
        job.logits_of,
        job.plan,
        job.chosen,
        clean,
        job.radii,
        device=job.runtime.device,
        batch_size=job.config.batch_size,
        report=report,
    )


def standard_results(
    job: AttackJob, clean: CleanState, report: Report, say: Callable[[str], None]
) -> Iterator[EpsResult]:
    """AutoAttack, its cost said first."""
    device, batch_size = job.runtime.device, job.config.batch_size
    cost = estimate_cost(job.logits_of, job.chosen, clean, len(job.radii), device, batch_size)
    say(
        f"at most {cost.gradient_passes} gradient and {cost.forward_passes} forward passes of an image: "
        f"{cost.seconds / 60:.1f} min here if none broke; after a stop the same call goes on"
    )
    return autoattack_images(
        job.logits_of,
        job.chosen,
        clean,
        list(job.radii),
        job.norm,
        checkpoint_sha256=job.checkpoint.sha256(),
        device=device,
        batch_size=batch_size,
        report=report,
    )


def save_result(job: AttackJob, result: EpsResult, clean: CleanState) -> dict[str, Any]:
    """The attacked images of one radius, and what is measured from their files."""
    folder = expand(job.config.save or "") / f"eps-{result.eps:.9g}"
    files = write_and_measure(
        folder,
        result,
        clean,
        job.chosen,
        job.logits_of,
        job.norm,
        device=job.runtime.device,
        batch_size=job.config.batch_size,
    )
    shares = {"success": score(files.success)}
    if job.chosen.targets is None:
        shares["robust_accuracy"] = score(files.robust)
    return {"folder": str(folder), **shares, "largest_distance": files.largest, "over_eps": files.over}


def save_report(folder: Path, found: dict[str, Any]) -> None:
    """attack.json and curve.png, as far as it has come."""
    write_atomically(folder / "attack.json", json.dumps(found, indent=2).encode())
    targeted = found["protocol"]["targets"] is not None
    name, label = ("success", "share pushed to the target") if targeted else ("robust_accuracy", "robust accuracy")
    start = {"value": 0.0, "interval_95": [0.0, 0.0]} if targeted else found["clean"]["accuracy"]
    shares = [start, *(result[name] for result in found["results"])]
    radii = [0.0, *(result["eps"] for result in found["results"])]
    title = f"{found['protocol']['data']}, {found['results'][0]['norm']}"
    values = [share["value"] or 0.0 for share in shares]
    write_atomically(
        folder / "curve.png", epsilon_curve(radii, values, [share["interval_95"] for share in shares], label, title)
    )
