"""Stochastic gradient Langevin dynamics (Eq. 1; Welling & Teh 2011) as JEM++ runs it (Yang & Ji 2021).

    x <- clamp(x - step * clip(dE/dx, -c, c) + noise)

JEM++ runs m outer steps of n inner ones and takes the inner gradient through the first layer alone. That layer is
affine, so the inner gradient is constant, and n inner steps of size h with clip and clamp equal one step of n * h. So
one network pass per outer step is enough.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from rjem_cli.engine.gradients import LogitsFn, Objective, value_and_grad
from rjem_cli.engine.models.energy import energy

NoiseFunction = Callable[[int, Tensor], Tensor]  # step, x -> standard normal draws like x


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


def sgld(
    logits_fn: LogitsFn,
    x: Tensor,
    *,
    steps: int,
    step_size: float,
    energy_fn: Objective = energy,
    grad_clip: float | None = 1.0,
    noise_std: float = 0.0,
    noise: NoiseFunction | None = None,
    temperature: float = 1.0,
    clamp: bool = True,
    callback: Callable[[ChainState], None] | None = None,
) -> Tensor:
    """Run `steps` outer steps from x (B, C, H, W) in [-1, 1]. Returns the last state.

    `energy_fn` maps logits (B, K) to energies (B,). `step_size` is per outer step, in model units. The chain follows E
    / temperature: it samples p(x)^(1 / temperature) in the limit of small steps if noise_std^2 = 2 * step_size and
    `grad_clip` is None. One network pass per step; never waits for the device by itself. Raises ValueError for
    `noise_std` > 0 without `noise`.
    """
    if noise_std > 0 and noise is None:
        raise ValueError("noise_std > 0 needs a noise function")
    for step in range(steps):
        logits_BK, energy_B, gradient = value_and_grad(logits_fn, energy_fn, x)
        if callback is not None:
            callback(ChainState(step, x, logits_BK, energy_B, gradient))
        draws = noise_std * noise(step, x) if noise_std > 0 and noise is not None else None
        x = sgld_step(x, gradient / temperature, step_size, grad_clip, draws, clamp)
    return x.detach()
