"""The one gradient that samplers and attacks follow, and how their steps run."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rjem_cli.engine.kernels import kernels_of
from rjem_cli.engine.parallel import check_cancelled

LogitsFn = Callable[[Tensor], Tensor]  # x (B, C, H, W) -> logits (B, K)
Objective = Callable[[Tensor], Tensor]  # logits (B, K) -> (B,)
Step = Callable[..., tuple[Tensor, ...]]  # a frozen network and tensors (B, ...) -> tensors (B, ...)


class Evaluation(NamedTuple):
    """A network and an objective at x: logits (B, K), values (B,), and d value / dx, shaped like x."""

    logits_BK: Tensor
    value_B: Tensor
    gradient: Tensor


def value_and_grad(logits_fn: LogitsFn, objective: Objective, x: Tensor) -> Evaluation:
    """One pass forward and backward. Rows must be independent in the network, as they are with frozen BatchNorm.
    Gradients flow to x only, never to parameters. No host sync."""
    x = x.detach().requires_grad_()
    with kernels_of(logits_fn).active(), torch.enable_grad():
        logits_BK = logits_fn(x)
        value_B = objective(logits_BK)
        (gradient,) = torch.autograd.grad(value_B.sum(), x)
    return Evaluation(logits_BK.detach(), value_B.detach(), gradient)


def gradient_step(logits_fn: LogitsFn, x: Tensor, *tensors: Tensor, objective: Callable[..., Tensor]) -> Evaluation:
    """`value_and_grad` as a step, for `run_step`. `objective` takes the logits and `tensors`."""
    return value_and_grad(logits_fn, lambda logits_BK: objective(logits_BK, *tensors), x)


def run_step(step: Step, logits_fn: LogitsFn, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """step(logits_fn, *tensors). If the network has `graphs`, a step that is run often is replayed as a CUDA graph. It
    must then read only its arguments and the network's weights, all on the device (`StepGraphs`). Raises
    CancelledError if nobody waits for the result any more (`run_in_parallel`)."""
    check_cancelled()
    graphs = getattr(logits_fn, "graphs", None)
    return step(logits_fn, *tensors) if graphs is None else graphs.run(step, logits_fn, *tensors)  # type: ignore[no-any-return]
