"""When training counts as diverged.

JEMs diverge: |E(x) - E(x_q)| runs away, the gradient of E explodes, or all values of the chains end at -1 or 1. Each
step is checked before the weights change. Running means are checked with each line of metrics and before each
checkpoint.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rjem_cli.config.training import TrainConfig

SATURATED = 0.99  # absolute value of a component


class Divergence(Exception):
    """Says what diverged. Training then returns to a checkpoint."""


@dataclass
class Guard:
    """`count` divergences of the run so far; each halves the learning rate for the rest of the run. `data_saturation`:
    share of the training images' values at -1 or 1."""

    config: TrainConfig
    num_classes: int
    data_saturation: float = 0.0
    count: int = 0

    @property
    def lr_scale(self) -> float:
        return 0.5**self.count

    @property
    def limits(self) -> dict[str, float]:
        """The largest absolute value of each of these metrics. Uniform predictions have a cross-entropy of ln K. Chains
        may saturate if the images do."""
        config = self.config
        max_cross_entropy = config.max_cross_entropy * math.log(max(2, self.num_classes))
        return {
            "energy_gap": config.max_energy_gap,
            "cross_entropy": max_cross_entropy if config.ce_weight else math.inf,
            "input_grad_norm": config.max_input_grad_norm,
            "saturation": config.max_saturation if self.data_saturation < config.max_saturation else 1.0,
        }

    def check_step(self, scalars: dict[str, Tensor]) -> None:
        """Raises Divergence for a scalar of this step that is not finite. Synchronizes with the device."""
        values = dict(zip(scalars, torch.stack([value.float() for value in scalars.values()]).tolist()))
        check_finite(values, " (fp16 may have overflowed: --precision fp32)" * (self.config.precision == "fp16"))

    def check_means(self, means: dict[str, float]) -> None:
        """Raises Divergence for a mean that is not finite or beyond its limit."""
        check_finite(means)
        for name, limit in self.limits.items():
            if abs(means.get(name, 0)) > limit:
                raise Divergence(f"{name} is {means[name]:.4g}, beyond {limit:.4g}")


def check_finite(values: dict[str, float], hint: str = "") -> None:
    """Raises Divergence for the first value that is not finite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise Divergence(f"{name} is not finite{hint}")


def saturation(x: Tensor) -> Tensor:
    """Share of the values at -1 or 1, the limits of the box."""
    return (x.abs() > SATURATED).float().mean()
