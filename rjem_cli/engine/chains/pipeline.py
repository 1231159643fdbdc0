"""The three ways to generate as one composition: start >> [targeted PGD] >> [contrast] >> [SGLD].

energy    prior >> SGLD                              the paper's Robust JEM-Energy
attack    prior >> targeted PGD                      the single robust classifier (Santurkar et al. 2019)
combined  prior >> targeted PGD >> contrast >> SGLD  the paper's Robust JEM
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rjem_cli.config import TrainConfig
from rjem_cli.engine.chains.pgd import Logits
from rjem_cli.engine.chains.sgld import ChainState
from rjem_cli.engine.chains.stages import Sampler, contrast, langevin, targeted_pgd


@dataclass(frozen=True)
class SamplePlan:
    """What happens to the start of a chain. Sizes in model units; `sgld_step_size` is per outer step. Chains that are
    not `conditional` follow E(x) and aim at no class."""

    mode: str
    conditional: bool
    attack_eps: float
    attack_steps: int
    norm: str
    contrast: float
    sgld_steps: int
    sgld_step_size: float
    noise_std: float
    grad_clip: float | None
    temperature: float = 1.0

    @property
    def attacks(self) -> bool:
        return self.mode in ("attack", "combined")

    @property
    def chains(self) -> bool:
        return self.mode in ("energy", "combined")

    @property
    def gradient_steps(self) -> int:
        """Network passes (forward and backward) that one sample costs."""
        return self.attack_steps * self.attacks + self.sgld_steps * self.chains


def plan_of(config: TrainConfig, mode: str, conditional: bool = True) -> SamplePlan:
    """How a model trained with `config` samples unless told otherwise."""
    return SamplePlan(
        mode=mode,
        conditional=conditional,
        attack_eps=config.attack_eps,
        attack_steps=config.attack_steps,
        norm=config.norm,
        contrast=config.contrast,
        sgld_steps=config.sample_steps if conditional else config.unconditional_steps,
        sgld_step_size=config.sgld_step_size * config.inner_steps,
        noise_std=config.noise_std,
        grad_clip=config.grad_clip,
    )


def sampler_of(plan: SamplePlan, start: Sampler, logits_of: Logits) -> Sampler:
    """The plan's stages behind `start`. `logits_of` must be frozen."""
    sampler = start
    if plan.attacks:
        sampler >>= targeted_pgd(logits_of, eps=plan.attack_eps, steps=plan.attack_steps, norm=plan.norm)
    if plan.mode == "combined":
        sampler >>= contrast(plan.contrast)
    if plan.chains:
        sampler >>= chain_of(plan, logits_of)
    return sampler


def chain_of(
    plan: SamplePlan, logits_of: Logits, clamp: bool = True, observe: Callable[[ChainState], None] | None = None
) -> Sampler:
    """The plan's Langevin stage alone."""
    return langevin(
        logits_of,
        steps=plan.sgld_steps,
        step_size=plan.sgld_step_size,
        noise_std=plan.noise_std,
        grad_clip=plan.grad_clip,
        temperature=plan.temperature,
        conditional=plan.conditional,
        clamp=clamp,
        observe=observe,
    )
