"""When training counts as diverged.

JEMs diverge: |E(x) - E(x_q)| runs away, the gradient of E explodes, or all values of the chains end at -1 or 1. The
scalars of each step are checked during the next one. Running means are checked with each line of metrics and before
each checkpoint, so no checkpoint has a state that diverged.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rjem_cli.config.training import TrainConfig

SATURATED = 0.99  # absolute value of a component


class Divergence(Exception):
    """Says what diverged. Training then returns to a checkpoint. `step`: which one diverged; None for the newest."""

    def __init__(self, reason: str, step: int | None = None):
        super().__init__(reason)
        self.step = step


class StepScalars(NamedTuple):
    """The scalars of a step. `values`, (number,), may still be on their way from a GPU to the host; `copied` is the
    event that ends the copy."""

    step: int
    names: list[str]
    values: Tensor
    copied: "torch.cuda.Event | None"


@dataclass
class Guard:
    """`count` divergences of the run so far; each halves the learning rate for the rest of the run. `data_saturation`:
    share of the training images' values at -1 or 1. `unchecked`: the scalars of the newest step."""

    config: TrainConfig
    num_classes: int
    data_saturation: float = 0.0
    count: int = 0
    unchecked: StepScalars | None = None

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

    def check_step(self, step: int, scalars: dict[str, Tensor]) -> None:
        """Keep the scalars of this step, and check those of the step before. Raises Divergence for one that is not
        finite. Waiting for this step's scalars would leave a GPU idle until the host has launched the next kernels."""
        previous, self.unchecked = self.unchecked, copy_scalars(step, scalars)
        if previous is None:
            return
        if previous.copied is not None:
            previous.copied.synchronize()
        hint = " (fp16 may have overflowed: --precision fp32)" * (self.config.precision == "fp16")
        check_finite(dict(zip(previous.names, previous.values.tolist())), hint, previous.step)

    def check_means(self, means: dict[str, float]) -> None:
        """Raises Divergence for a mean that is not finite or beyond its limit."""
        check_finite(means)
        for name, limit in self.limits.items():
            if abs(means.get(name, 0)) > limit:
                raise Divergence(f"{name} is {means[name]:.4g}, beyond {limit:.4g}")


def copy_scalars(step: int, scalars: dict[str, Tensor]) -> StepScalars:
    """Start to copy the scalars of a step from a GPU to the host."""
    stacked = torch.stack([value.float() for value in scalars.values()])
    if not stacked.is_cuda:
        return StepScalars(step, list(scalars), stacked, None)
    values, copied = stacked.to("cpu", non_blocking=True), torch.cuda.Event()
    copied.record(torch.cuda.current_stream(stacked.device))
    return StepScalars(step, list(scalars), values, copied)


def check_finite(values: dict[str, float], hint: str = "", step: int | None = None) -> None:
    """Raises Divergence for the first value that is not finite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise Divergence(f"{name} is not finite{hint}", step)


def saturation(x: Tensor) -> Tensor:
    """Share of the values at -1 or 1, the limits of the box."""
    return (x.abs() > SATURATED).float().mean()
