"""Samplers as compositions: start >> [targeted PGD] >> [contrast] >> [SGLD].

    energy    prior >> SGLD                              the paper's Robust JEM-Energy
    attack    prior >> targeted PGD                      the single robust classifier (Santurkar et al. 2019)
    combined  prior >> targeted PGD >> contrast >> SGLD  the paper's Robust JEM

    sampler = prior_start(prior) >> targeted_pgd(model, eps=0.5, steps=20) >> contrast(0.7) >> langevin(model, steps=50)
    x = sampler(labels, seeds)

A stage is a function of (images or None, labels, seeds), so you can add your own:

    mirrored = sampler >> (lambda x, labels, seeds: x.flip(3))
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.attacks.pgd import cross_entropy_until, pgd
from rjem_cli.engine.data.images import to_model
from rjem_cli.engine.gradients import LogitsFn
from rjem_cli.engine.models.energy import energy, joint_energy
from rjem_cli.engine.models.prior import ClassGaussianPrior
from rjem_cli.engine.noise import CHAIN_STREAM, PRIOR_STREAM, START_STREAM, standard_normal, uniform
from rjem_cli.engine.sampling.sgld import SgldParameters, sgld

Stage = Callable[..., Tensor]  # x (B, C, H, W) or None, labels (B,), seeds (B,) -> x (B, C, H, W) in [-1, 1]


@dataclass(frozen=True)
class Sampler:
    """Stages, one after another."""

    stages: tuple[Stage, ...]

    def __rshift__(self, other: "Sampler | Stage") -> "Sampler":
        return Sampler(self.stages + (other.stages if isinstance(other, Sampler) else (other,)))

    def __call__(self, labels_B: Tensor, seeds_B: Tensor, x: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1]. labels_B: int64 (B,), on the host or the device. seeds_B: int64 (B,) on the
        device, not negative. A sampler without a start needs `x`. Raises ValueError if it has neither."""
        for stage in self.stages:
            x = stage(x, labels_B, seeds_B)
        if x is None:
            raise ValueError("a sampler needs a start, such as prior_start(prior), or images")
        return x


# --- starts: stages that take no images; row i depends on labels_B[i] and seeds_B[i] only ---


def prior_start(prior: ClassGaussianPrior, temperature: float = 1.0) -> Sampler:
    """Samples from the Gaussian of each class (JEM++'s informative initialisation); `temperature` scales how far they
    are from its mean."""

    def start(x: Tensor | None, labels_B: Tensor, seeds_B: Tensor) -> Tensor:
        normals = standard_normal(seeds_B, (prior.normals_per_sample,), PRIOR_STREAM)
        return prior.sample(labels_B, normals, temperature)

    return Sampler((start,))


def noise_start(image_shape: tuple[int, int, int]) -> Sampler:
    """Uniform noise in [-1, 1] (JEM's initialisation)."""

    def start(x: Tensor | None, labels_B: Tensor, seeds_B: Tensor) -> Tensor:
        return 2 * uniform(seeds_B, image_shape, START_STREAM) - 1

    return Sampler((start,))


def random_image_start(pixels: Tensor, labels_N: Tensor | None = None) -> Sampler:
    """A random image of the wanted class among `pixels`, uint8 (N, C, H, W); without labels, any image. Raises
    ValueError if a class up to the largest label has no image."""
    any_class = labels_N is None
    labels_N = torch.zeros(len(pixels), dtype=torch.long) if labels_N is None else labels_N.cpu()
    order = labels_N.argsort(stable=True).to(pixels.device)
    counts = torch.bincount(labels_N)
    if not counts.all():
        raise ValueError(f"class {int((counts == 0).nonzero()[0])} has no image")
    counts = counts.to(pixels.device)
    begins = counts.cumsum(0) - counts

    def start(x: Tensor | None, labels_B: Tensor, seeds_B: Tensor) -> Tensor:
        classes = (torch.zeros_like(labels_B) if any_class else labels_B).to(pixels.device, non_blocking=True)
        chance = uniform(seeds_B, (1,), START_STREAM).squeeze(1).to(pixels.device)
        index = ((1 - chance) * counts[classes]).long().clamp_max(counts[classes] - 1)
        return to_model(pixels[order[begins[classes] + index]]).to(seeds_B.device)

    return Sampler((start,))


def image_start(pixels: Tensor, first_seed: int) -> Sampler:
    """The images `pixels`, uint8 (N, C, H, W), in order: chain i starts at image i % N."""

    def start(x: Tensor | None, labels_B: Tensor, seeds_B: Tensor) -> Tensor:
        return to_model(pixels[(seeds_B - first_seed).to(pixels.device) % len(pixels)]).to(seeds_B.device)

    return Sampler((start,))


# --- stages ---


def targeted_pgd(
    logits_fn: LogitsFn, *, eps: float, steps: int, norm: str = "linf", confidence: float = 1.0
) -> Sampler:
    """PGD towards each label (Santurkar et al. 2019), `eps` in model units. It stops for an image once p(y | x)
    exceeds `confidence`, in (0, 1]. `logits_fn` must be frozen."""
    loss = partial(cross_entropy_until, confidence=confidence)

    def stage(x: Tensor, labels_B: Tensor, seeds_B: Tensor) -> Tensor:
        targets_B = labels_B.to(x.device, non_blocking=True)
        return pgd(logits_fn, x, targets_B, eps=eps, steps=steps, norm=norm, loss=loss, targeted=True)

    return Sampler((stage,))


def contrast(scale: float) -> Sampler:
    """Scale images towards 0, so that SGLD stays inside [-1, 1] without clamping (the paper's combined inference)."""
    return Sampler((lambda x, labels_B, seeds_B: x * scale,))


def langevin(
    logits_fn: LogitsFn, *, steps: int, step_size: float = 1.0, conditional: bool = True, **options: Any
) -> Sampler:
    """SGLD on E(x, y), or on E(x) if not `conditional`; `options` as in `sgld`. The noise of row i depends on its seed
    and the step only. `logits_fn` must be frozen."""

    def stage(x: Tensor, labels_B: Tensor, seeds_B: Tensor) -> Tensor:
        return sgld(
            logits_fn,
            x,
            labels_B.to(x.device, non_blocking=True) if conditional else None,
            steps=steps,
            step_size=step_size,
            energy_fn=joint_energy if conditional else energy,
            noise=lambda step, x: standard_normal(seeds_B, tuple(x.shape[1:]), CHAIN_STREAM, step),
            **options,
        )

    return Sampler((stage,))


# --- the three modes ---


@dataclass(frozen=True)
class SamplePlan:
    """The stages after the start, and the temperature of a prior start. Radii are in model units. Chains that are not
    `conditional` follow E(x) and have no class."""

    mode: str
    conditional: bool
    attack_eps: float
    attack_steps: int
    norm: str
    contrast: float
    sgld_steps: int
    sgld: SgldParameters
    prior_temperature: float = 1.0
    attack_confidence: float = 1.0

    @classmethod
    def from_config(cls, config: TrainConfig, mode: str, conditional: bool = True) -> "SamplePlan":
        """The default plan of a model trained with `config`."""
        return cls(
            mode=mode,
            conditional=conditional,
            attack_eps=config.attack_eps,
            attack_steps=config.attack_steps,
            norm=config.norm,
            contrast=config.contrast,
            sgld_steps=config.sample_steps if conditional else config.unconditional_steps,
            sgld=SgldParameters.from_config(config),
            prior_temperature=config.prior_temperature,
            attack_confidence=config.attack_confidence,
        )

    @property
    def has_attack(self) -> bool:
        return self.mode in ("attack", "combined")

    @property
    def has_chain(self) -> bool:
        return self.mode in ("energy", "combined")

    @property
    def gradient_steps(self) -> int:
        """Network passes (forward and backward) that one sample costs."""
        return self.attack_steps * self.has_attack + self.sgld_steps * self.has_chain


def build_sampler(plan: SamplePlan, start: Sampler, logits_fn: LogitsFn) -> Sampler:
    """The plan's stages after `start`. `logits_fn` must be frozen."""
    sampler = start
    if plan.has_attack:
        sampler >>= targeted_pgd(
            logits_fn,
            eps=plan.attack_eps,
            steps=plan.attack_steps,
            norm=plan.norm,
            confidence=plan.attack_confidence,
        )
    if plan.mode == "combined":
        sampler >>= contrast(plan.contrast)
    if plan.has_chain:
        sampler >>= build_chain(plan, logits_fn)
    return sampler


def build_chain(plan: SamplePlan, logits_fn: LogitsFn, **options: Any) -> Sampler:
    """The plan's Langevin stage alone; `options` as in `sgld`, such as a callback."""
    return langevin(logits_fn, steps=plan.sgld_steps, conditional=plan.conditional, **asdict(plan.sgld), **options)
