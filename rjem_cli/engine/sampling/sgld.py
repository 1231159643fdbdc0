"""Stochastic gradient Langevin dynamics (Eq. 1; Welling & Teh 2011) as JEM++ runs it (Yang & Ji 2021).

    x <- clamp(x - step * clip(dE/dx, -c, c) + noise)

JEM++ runs m outer steps of n inner ones and takes the inner gradient through the first layer alone. That layer is
affine, so the inner gradient is constant, and n inner steps of size h with clip and clamp equal one step of n * h. So
one network pass per outer step is enough.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import NamedTuple, Self

from torch import Tensor

from rjem_cli.config.sampling import ChainOptions
from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.gradients import LogitsFn, gradient_step, run_step
from rjem_cli.engine.models.energy import energy
from rjem_cli.errors import ConfigError

NoiseFunction = Callable[[int, Tensor], Tensor]  # step, x -> standard normal draws like x
EnergyFunction = Callable[..., Tensor]  # logits (B, K), and labels (B,) where chains have them -> (B,)


@dataclass(frozen=True)
class SgldParameters:
    """The arguments of `sgld` with these names; step and noise are per outer step."""

    step_size: float
    noise_std: float = 0.0
    grad_clip: float | None = 1.0
    temperature: float = 1.0

    @classmethod
    def from_config(cls, config: TrainConfig) -> Self:
        """The parameters of the training chains."""
        return cls(config.sgld_step_size * config.inner_steps, config.noise_std, config.grad_clip)

    @classmethod
    def for_sampling(cls, options: ChainOptions, trained: TrainConfig) -> Self:
        """The training parameters, overridden by the options that are set. Raises ConfigError for an infinite step."""
        inner = trained.sgld_step_size if options.sgld_step_size is None else options.sgld_step_size
        step_size = inner * (trained.inner_steps if options.inner_steps is None else options.inner_steps)
        if not math.isfinite(step_size):
            raise ConfigError("--sgld-step-size times --inner-steps is not finite; give smaller values")
        if options.langevin_noise:  # Eq. 1 with a / 2 for the step: the noise has variance a
            return cls(step_size, math.sqrt(2 * step_size), None, options.temperature)
        values = asdict(cls.from_config(trained)) | {"step_size": step_size}
        given = {field.name: getattr(options, field.name, None) for field in fields(cls)}
        return cls(**values | {name: value for name, value in given.items() if value is not None})


class ChainState(NamedTuple):
    """Before a step: x (B, C, H, W), its logits (B, K), energy (B,) and dE/dx."""

    step: int
    x: Tensor
    logits_BK: Tensor
    energy_B: Tensor
    gradient: Tensor


def sgld_step(
    x: Tensor,
    gradient: Tensor,
    step_size: float,
    grad_clip: float | None,
    noise: Tensor | None = None,
    clamp: bool = True,
) -> Tensor:
    """One outer step, which is n inner ones if step_size = n * h. `clamp` keeps it inside the box [-1, 1]."""
    x = x - step_size * (gradient if grad_clip is None else gradient.clamp(-grad_clip, grad_clip))
    if noise is not None:
        x = x + noise
    return x.clamp(-1, 1) if clamp else x


def langevin_step(
    logits_fn: LogitsFn,
    x: Tensor,
    noise: Tensor | None,
    labels_B: Tensor | None,
    *,
    energy_fn: EnergyFunction,
    chain: SgldParameters,
    clamp: bool,
) -> tuple[Tensor, ...]:
    """(x after one outer step (B, C, H, W); logits (B, K), energy (B,) and its gradient at the x before it)."""
    labels = () if labels_B is None else (labels_B,)
    evaluation = gradient_step(logits_fn, x, *labels, objective=energy_fn)
    draws = None if noise is None else chain.noise_std * noise
    gradient = evaluation.gradient / chain.temperature
    return sgld_step(x, gradient, chain.step_size, chain.grad_clip, draws, clamp), *evaluation


def sgld(
    logits_fn: LogitsFn,
    x: Tensor,
    labels_B: Tensor | None = None,
    *,
    steps: int,
    step_size: float,
    energy_fn: EnergyFunction = energy,
    grad_clip: float | None = 1.0,
    noise_std: float = 0.0,
    noise: NoiseFunction | None = None,
    temperature: float = 1.0,
    clamp: bool = True,
    callback: Callable[[ChainState], None] | None = None,
) -> Tensor:
    """Run `steps` outer steps from x (B, C, H, W) in [-1, 1]. Returns the last state.

    `energy_fn` maps logits (B, K), and `labels_B` if given, to energies (B,). `step_size` is per outer step, in model
    units. The chain follows E / temperature: it samples p(x)^(1 / temperature) in the limit of small steps if
    noise_std^2 = 2 * step_size and `grad_clip` is None. One network pass per step; never waits for the device by
    itself. Raises ValueError for `noise_std` > 0 without `noise`.
    """
    if noise_std > 0 and noise is None:
        raise ValueError("noise_std > 0 needs a noise function")
    chain = SgldParameters(step_size, noise_std, grad_clip, temperature)
    step_fn = partial(langevin_step, energy_fn=energy_fn, chain=chain, clamp=clamp)
    for step in range(steps):
        draws = noise(step, x) if noise_std > 0 and noise is not None else None
        x_next, logits_BK, energy_B, gradient = run_step(step_fn, logits_fn, x, draws, labels_B)
        if callback is not None:
            callback(ChainState(step, x, logits_BK, energy_B, gradient))
        x = x_next
    return x.detach()
