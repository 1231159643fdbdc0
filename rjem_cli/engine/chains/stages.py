"""Samplers as one composition: a start, then what moves it.

    sampler = prior_draws(prior) >> targeted_pgd(model, eps=0.5, steps=20) >> contrast(0.7) >> langevin(model, steps=50)
    x = sampler(labels, seeds)

A stage is a function of (images or None, labels, seeds), so your own fit in:

    mirrored = sampler >> (lambda x, labels, seeds: x.flip(3))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rjem_cli.engine.chains.moves import walk
from rjem_cli.engine.chains.noise import chain_noise
from rjem_cli.engine.chains.pgd import Logits, pgd
from rjem_cli.engine.chains.sgld import ChainState, sgld
from rjem_cli.engine.model.energy import energy, joint_energy

Stage = Callable[..., Tensor]  # x (B, C, H, W) or None, labels (B,), seeds (B,) -> x (B, C, H, W) in [-1, 1]


@dataclass(frozen=True)
class Sampler:
    """Stages, one after another."""

    stages: tuple[Stage, ...]

    def __rshift__(self, other: Sampler | Stage) -> Sampler:
        return Sampler(self.stages + (other.stages if isinstance(other, Sampler) else (other,)))

    def __call__(self, labels_B: Tensor, seeds_B: Tensor, x: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1]. labels_B: int64 (B,), on the host or the device; seeds_B: int64 (B,) on the
        device, not negative. A sampler without a start needs `x`. Raises ValueError where there is neither."""
        for stage in self.stages:
            x = stage(x, labels_B, seeds_B)
        if x is None:
            raise ValueError("a sampler needs a start, such as prior_draws(prior), or images")
        return x


def targeted_pgd(logits_of: Logits, *, eps: float, steps: int, norm: str = "linf") -> Sampler:
    """PGD towards each label, `eps` in model units (Santurkar et al. 2019). `logits_of` must be frozen."""

    def stage(x: Tensor, labels_B: Tensor, seeds_B: Tensor) -> Tensor:
        wanted = labels_B.to(x.device, non_blocking=True)
        return walk(logits_of, pgd(x, wanted, eps=eps, steps=steps, norm=norm, targeted=True))

    return Sampler((stage,))


def contrast(scale: float) -> Sampler:
    """Scaled towards 0 so that SGLD stays inside [-1, 1] without clamping (the paper's trick in combined inference)."""
    return Sampler((lambda x, labels_B, seeds_B: x * scale,))


def langevin(
    logits_of: Logits,
    *,
    steps: int,
    step_size: float = 1.0,
    noise_std: float = 0.0,
    grad_clip: float | None = 1.0,
    temperature: float = 1.0,
    conditional: bool = True,
    clamp: bool = True,
    observe: Callable[[ChainState], None] | None = None,
) -> Sampler:
    """SGLD on E(x, y), or on E(x) where not `conditional`. `step_size` per outer step, model units; the noise of row i
    depends on its seed and the step only. `logits_of` must be frozen."""

    def stage(x: Tensor, labels_B: Tensor, seeds_B: Tensor) -> Tensor:
        labels_here = labels_B.to(x.device, non_blocking=True)
        chain = sgld(
            (lambda logits_BK: joint_energy(logits_BK, labels_here)) if conditional else energy,
            x,
            sgld_steps=steps,
            step_size=step_size,
            grad_clip=grad_clip,
            noise_std=noise_std,
            noise=chain_noise(seeds_B),
            temperature=temperature,
            clamp=clamp,
            observe=observe,
        )
        return walk(logits_of, chain)

    return Sampler((stage,))
