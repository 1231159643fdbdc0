"""How chains and attacks are described in words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rjem_cli.knobs import describe_epsilon

if TYPE_CHECKING:
    from rjem_cli.engine.chains.pipeline import SamplePlan
    from rjem_cli.engine.model.checkpoint import CheckpointInfo
    from rjem_cli.engine.sampling.request import SampleRequest


def describe_checkpoint(path: Path, info: CheckpointInfo) -> str:
    planned = info.config.steps or 0
    unfinished = f" of {planned}, unfinished" if info.step < planned else ""
    return f"checkpoint: {path} (step {info.step}{unfinished}, {info.data_name})"


def describe_classes(request: SampleRequest) -> str:
    if not request.plan.conditional:
        return "no class"
    names = [request.class_names[label] for label in dict.fromkeys(request.classes)]
    return ", ".join(names) if len(names) <= 20 else f"{len(names)} classes"


def describe_plan(plan: SamplePlan, init: str) -> str:
    """`mode combined: prior -> targeted PGD ... -> contrast 0.8 -> SGLD ...`, radii in both units."""
    stages = [init]
    if plan.attacks:
        stages.append(f"targeted PGD {plan.norm} eps {describe_epsilon(plan.attack_eps)}, {plan.attack_steps} steps")
    if plan.mode == "combined":
        stages.append(f"contrast {plan.contrast:g}")
    if plan.chains:
        energy = "E(x, y)" if plan.conditional else "E(x)"
        temperature = f", temperature {plan.temperature:g}" if plan.temperature != 1 else ""
        steps = f"{plan.sgld_steps} steps of {plan.sgld_step_size:g}, noise {plan.noise_std:g}{temperature}"
        stages.append(f"SGLD on {energy}, {steps}")
    return f"mode {plan.mode}: " + " -> ".join(stages)
