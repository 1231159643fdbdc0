"""The three ways to generate as one composition: prior -> [targeted PGD] -> [contrast] -> [SGLD on E(x, y)].

energy    prior -> SGLD                              the paper's Robust JEM-Energy
attack    prior -> targeted PGD                      the single robust classifier (Santurkar et al. 2019)
combined  prior -> targeted PGD -> contrast -> SGLD  the paper's Robust JEM
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rjem_cli.config import TrainConfig
from rjem_cli.engine.chains.noise import PRIOR_STREAM, chain_noise, standard_normal
from rjem_cli.engine.chains.pgd import pgd
from rjem_cli.engine.chains.sgld import sgld
from rjem_cli.engine.model.energy import joint_energy
from rjem_cli.engine.model.prior import ClassGaussianPrior


@dataclass(frozen=True)
class SamplePlan:
    """What happens to a draw from the prior. Sizes in model units; `sgld_step_size` is per outer step."""

    mode: str
    attack_eps: float
    attack_steps: int
    norm: str
    contrast: float
    sgld_steps: int
    sgld_step_size: float
    noise_std: float
    grad_clip: float

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


def plan_of(config: TrainConfig, mode: str) -> SamplePlan:
    """How a model trained with `config` samples unless told otherwise."""
    return SamplePlan(
        mode=mode,
        attack_eps=config.attack_eps,
        attack_steps=config.attack_steps,
        norm=config.norm,
        contrast=config.contrast,
        sgld_steps=config.sample_steps,
        sgld_step_size=config.sgld_step_size * config.inner_steps,
        noise_std=config.noise_std,
        grad_clip=config.grad_clip,
    )


def prior_samples(prior: ClassGaussianPrior, labels_B: Tensor, seeds_B: Tensor) -> Tensor:
    """The start of each sample, (B, C, H, W) in [-1, 1]; row i depends on labels_B[i] and seeds_B[i] only."""
    normals_BN = standard_normal(seeds_B, (prior.normals_per_sample,), PRIOR_STREAM)
    return prior.sample(labels_B, normals_BN)


def contrast(x: Tensor, scale: float) -> Tensor:
    """Scaled towards 0 so that SGLD stays inside [-1, 1] without clamping (the paper's trick in combined inference)."""
    return x * scale


def run_plan(
    plan: SamplePlan, logits_of: Callable[[Tensor], Tensor], x: Tensor, labels_B: Tensor, seeds_B: Tensor
) -> Tensor:
    """Take starts x through the plan's stages; returns images in [-1, 1]. `logits_of` must be frozen."""
    if plan.attacks:
        x = pgd(logits_of, x, labels_B, eps=plan.attack_eps, steps=plan.attack_steps, norm=plan.norm, targeted=True)
    if plan.mode == "combined":
        x = contrast(x, plan.contrast)
    if plan.chains:
        x = sgld(
            lambda x: joint_energy(logits_of(x), labels_B),
            x,
            sgld_steps=plan.sgld_steps,
            step_size=plan.sgld_step_size,
            grad_clip=plan.grad_clip,
            noise_std=plan.noise_std,
            noise=chain_noise(seeds_B),
        )
    return x
