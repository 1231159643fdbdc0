"""The optimizer, its state as tensors, and its learning rate over a run."""

import math

import torch
from torch import Tensor, nn

from rjem_cli.config import OptimizerOptions

MILESTONES = (1 / 3, 2 / 3, 5 / 6)  # JEM++: epochs 50, 100 and 125 of 150


def steps_per_epoch(batch_size: int, train_images: int) -> int:
    """Whole batches only, but at least one."""
    return max(1, train_images // batch_size)


def total_steps(options: OptimizerOptions, train_images: int) -> int:
    """`steps` if set, else `epochs` passes over the training images."""
    return options.steps or max(1, round(options.epochs * steps_per_epoch(options.batch_size, train_images)))


def learning_rate(step: int, steps: int, options: OptimizerOptions) -> float:
    """The rate of step `step` of `steps`, counted from 0: a linear warm-up, then steps (JEM++) or a half cosine
    (Loshchilov & Hutter 2017)."""
    warmup = min(1.0, (step + 1) / options.warmup_steps) if options.warmup_steps else 1.0
    done, decay = step / steps, 1.0
    if options.lr_schedule == "cosine":
        decay = 0.5 * (1 + math.cos(math.pi * done))
    elif options.lr_schedule == "steps":
        decay = options.lr_decay ** sum(done >= milestone for milestone in MILESTONES)
    return options.lr * warmup * decay


def build_optimizer(model: nn.Module, options: OptimizerOptions) -> torch.optim.Optimizer:
    parameters, lr, weight_decay = list(model.parameters()), options.lr, options.weight_decay
    if options.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=lr, betas=(options.momentum, 0.999), weight_decay=weight_decay)
    return torch.optim.SGD(parameters, lr=lr, momentum=options.momentum, weight_decay=weight_decay)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`<parameter>.<name>` for every tensor: momentum of SGD, moments and step counts of Adam."""
    return {
        f"{parameter}.{name}": value
        for parameter, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `pack_optimizer`. Learning rate and weight decay stay those of `optimizer`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        parameter, name = key.split(".", 1)
        state.setdefault(int(parameter), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
