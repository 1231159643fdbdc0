"""Stochastic gradient Langevin dynamics (Eq. 1; Welling & Teh 2011) as JEM++ runs it (Yang & Ji 2021).

    x <- clamp(x - step * clip(dE/dx, -c, c) + noise)

JEM++ splits a step into m outer and n inner ones and takes the inner gradient through the first layer alone. That
layer is affine, so the inner gradient is constant, and n inner steps of size h with clip and clamp are exactly one
step of n * h: `inner_steps` costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from rjem_cli.engine.chains.moves import Answer, Moves, Objective, Question, ask

EnergyFunction = Callable[[Tensor], Tensor]  # x (B, C, H, W) -> E (B,)
NoiseFunction = Callable[[int, Tensor], Tensor]  # step, x -> standard normal draws like x


class ChainState(NamedTuple):
    """What an observer of a chain sees before each outer step; the three belong to the same x."""

    step: int
    x: Tensor
    energy_B: Tensor
    gradient: Tensor


def energy_gradient(energy_of: EnergyFunction, x: Tensor) -> Answer:
    """E (B,) and dE/dx, shaped like x. Gradients flow to x only, never to parameters."""
    (found,) = ask(energy_of, [Question(x, itself)])
    return found


def itself(value_B: Tensor) -> Tensor:
    """The objective of a network that gives energies."""
    return value_B


def sgld_step(
    x: Tensor,
    gradient: Tensor,
    step_size: float,
    grad_clip: float | None,
    noise: Tensor | None = None,
    clamp: bool = True,
) -> Tensor:
    """One outer step (n inner ones in closed form when step_size = n * h); `clamp` ends it inside the box [-1, 1]."""
    moved = x - step_size * (gradient if grad_clip is None else gradient.clamp(-grad_clip, grad_clip))
    moved = moved if noise is None else moved + noise
    return moved.clamp(-1, 1) if clamp else moved


def sgld(
    energy_of: Objective,
    x: Tensor,
    *,
    sgld_steps: int,
    step_size: float,
    grad_clip: float | None = 1.0,
    noise_std: float = 0.0,
    noise: NoiseFunction | None = None,
    temperature: float = 1.0,
    clamp: bool = True,
    observe: Callable[[ChainState], None] | None = None,
) -> Moves:
    """`sgld_steps` outer steps from x in [-1, 1] on the energy that `energy_of` reads from the network's output; one
    network pass each, no host sync.

    `step_size` is per outer step, in model units; `noise_std` > 0 needs `noise`. The chain follows E / temperature
    (small steps, noise_std^2 = 2 * step_size and no clip give the density p(x)^(1 / temperature)). `observe` sees each
    state that is left: x as it was, its energy and its gradient. Raises ValueError for noise without its function.
    """
    if noise_std > 0 and noise is None:
        raise ValueError("noise_std > 0 needs a noise function")
    for step in range(sgld_steps):
        energy_B, gradient = yield Question(x, energy_of)
        draws = noise_std * noise(step, x) if noise_std > 0 and noise is not None else None
        if observe is not None:
            observe(ChainState(step, x, energy_B, gradient))
        x = sgld_step(x, gradient / temperature, step_size, grad_clip, draws, clamp)
    return x
