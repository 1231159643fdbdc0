"""Descriptions of checkpoints, samples and chains, and the table of recorded chains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rjem_cli.cli.console import Console
from rjem_cli.cli.formatting import sparkline
from rjem_cli.config.fields import format_epsilon

if TYPE_CHECKING:
    from rjem_cli.engine.models.checkpoint import Checkpoint
    from rjem_cli.engine.sampling.generate import SampleSetup
    from rjem_cli.engine.sampling.pipeline import SamplePlan
    from rjem_cli.engine.sampling.request import SampleRequest

MAX_CLASS_NAMES, MAX_CHAINS, MAX_INDICES = 20, 16, 20  # that are listed
LARGE_NOISE = 0.3  # standard deviation per step, model units


def describe_checkpoint(checkpoint: Checkpoint) -> str:
    path, info = checkpoint.path, checkpoint.info
    if checkpoint.is_custom:
        return f"network: {path} (for {info.data_name})"
    planned = info.config.steps or 0
    unfinished = f" of {planned}, unfinished" if info.step < planned else ""
    return f"checkpoint: {path} (step {info.step}{unfinished}, {info.data_name})"


def describe_classes(request: SampleRequest) -> str:
    if not request.plan.conditional:
        return "no class"
    names = [request.class_names[label] for label in dict.fromkeys(request.classes[: request.count])]
    return ", ".join(names) if len(names) <= MAX_CLASS_NAMES else f"{len(names)} classes"


def describe_plan(plan: SamplePlan, init: str) -> str:
    """`prior -> targeted PGD ... -> contrast 0.7 -> SGLD ...`, radii in both units."""
    is_scaled = init == "prior" and plan.prior_temperature != 1
    stages = [f"prior of temperature {plan.prior_temperature:g}" if is_scaled else init]
    if plan.has_attack:
        eps = format_epsilon(plan.attack_eps, plan.norm)
        until = f", until p(y|x) > {plan.attack_confidence:g}" if plan.attack_confidence < 1 else ""
        stages.append(f"targeted PGD {plan.norm} eps {eps}, {plan.attack_steps} steps{until}")
    if plan.mode == "combined":
        stages.append(f"contrast {plan.contrast:g}")
    if plan.has_chain:
        energy, sgld = "E(x, y)" if plan.conditional else "E(x)", plan.sgld
        temperature = f", temperature {sgld.temperature:g}" if sgld.temperature != 1 else ""
        noise = f"noise {sgld.noise_std:g}" if sgld.noise_std else "no noise (descent)"
        clip = "no clip" if sgld.grad_clip is None else f"clip {sgld.grad_clip:g}"
        length = f"{plan.sgld_steps} steps, step size {sgld.step_size:g}"
        stages.append(f"SGLD on {energy}, {length}, {noise}, {clip}{temperature}")
    return " -> ".join(stages)


def log_setup(setup: SampleSetup, console: Console, *details: str) -> None:
    """Log the checkpoint, the device and `details`; warn about large noise."""
    plan = setup.request.plan
    for text in (describe_checkpoint(setup.model.checkpoint), f"device: {setup.model.runtime.describe()}", *details):
        console.log(text)
    if plan.has_chain and plan.sgld.noise_std >= LARGE_NOISE:
        console.warn(
            f"noise of {plan.sgld.noise_std:.3g} per step hides most of an image in [-1, 1]; JEM uses less, such as "
            "--noise-std 0.01"
        )


def show_chains(chains: list[dict[str, Any]], console: Console) -> None:
    """One row per chain: its class, its energy from start to end, and whether it left the box or is not finite."""
    name, symbol = ("joint_energy", "E(x, y)") if "joint_energy" in chains[0] else ("energy", "E(x)")
    rows = []
    for chain in chains[:MAX_CHAINS]:
        energies = chain[name]
        ends = " to ".join("-" if value is None else f"{value:.2f}" for value in (energies[0], energies[-1]))
        state = f"{chain['saturation']:.0%} saturated"
        if chain["left_box_at"] is not None:
            state = f"left the box at step {chain['left_box_at']}"
        if chain["not_finite_from"] is not None:
            state = f"not finite from step {chain['not_finite_from']}"
        rows.append((str(chain["chain"]), chain["class"], ends, sparkline(energies), state))
    console.table("Chains", ("chain", "class", symbol, "from start to end", "state"), rows)
    if len(chains) > MAX_CHAINS:
        console.log(f"{MAX_CHAINS} of {len(chains)} chains are shown")
    left = [str(chain["chain"]) for chain in chains if chain["left_box_at"] is not None]
    if left:
        indices = f"{', '.join(left[:MAX_INDICES])}{', ...' if len(left) > MAX_INDICES else ''}"
        console.warn(f"{len(left)} of {len(chains)} chains left the box [-1, 1]: {indices}")
