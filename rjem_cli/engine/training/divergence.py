"""When training runs away: what is watched, and what an event changes.

JEMs diverge: |E(x) - E(x_q)| runs away, the gradient of E explodes, or all chains end at the walls of the box. Each
step is looked at before it is taken, so a sick one never reaches the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rjem_cli.config import TrainConfig


class Divergence(Exception):
    """What was seen, in words; training returns to its newest checkpoint."""


@dataclass
class Guard:
    """`count` events so far; each halves the learning rate for the rest of the run. `data_saturation`: the share of the
    training images' values at a wall."""

    options: TrainConfig
    num_classes: int
    data_saturation: float = 0.0
    count: int = 0

    @property
    def rate_scale(self) -> float:
        return 0.5**self.count

    @property
    def limits(self) -> dict[str, float]:
        """The largest size of what is watched. A network that always says the same has a cross-entropy of ln K at
        most, so one far above it for long is no slow learner but has diverged, if the cross-entropy is trained at all.
        Chains may end at the walls where the images lie there."""
        options = self.options
        return {
            "energy_gap": options.max_energy_gap,
            "cross_entropy": options.max_cross_entropy * math.log(max(2, self.num_classes))
            if options.ce_weight
            else math.inf,
            "input_grad_norm": options.max_input_grad_norm,
            "saturation": options.max_saturation if self.data_saturation < options.max_saturation else 1.0,
        }

    def check_step(self, scalars: dict[str, Tensor]) -> None:
        """Raises Divergence for a scalar of this step that is not finite. The host waits for the device, once in a step
        of many network passes."""
        values = dict(zip(scalars, torch.stack([value.float() for value in scalars.values()]).tolist()))
        check_finite(values, " (fp16 may have overflowed: --precision fp32)" * (self.options.precision == "fp16"))

    def check_means(self, means: dict[str, float]) -> None:
        """Raises Divergence for a mean since the last line of metrics that is not finite or beyond its limit."""
        check_finite(means)
        for name, limit in self.limits.items():
            if abs(means.get(name, 0)) > limit:
                raise Divergence(f"{name} is {means[name]:.4g}, beyond {limit:.4g}")


def check_finite(values: dict[str, float], hint: str = "") -> None:
    """Raises Divergence, with the hint, for the first that is not."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise Divergence(f"{name} is not finite{hint}")
