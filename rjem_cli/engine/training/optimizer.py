"""The optimizer, its learning rate over a run, and the moving average (EMA) of the weights, which generates samples and
is evaluated."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from rjem_cli.config.training import OptimizerOptions
from rjem_cli.engine.data.images import ImageSet, to_model
from rjem_cli.engine.models.frozen import BATCH_NORMS

MILESTONES = (1 / 3, 2 / 3, 5 / 6)  # JEM++: epochs 50, 100 and 125 of 150
STATISTICS_IMAGES = 2048
STATISTICS_BATCH = 128


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


class Ema(AveragedModel):
    """An exponential moving average of `model`; decay 0 follows it exactly.

    The decay of update t is min(decay, (1 + t) / (10 + t)), so that a short run is not an average of its first weights.
    Its count of updates stays on the host. Buffers are copied.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        updates = self.n_averaged.float()
        weight = (1 - ((1 + updates) / (10 + updates)).clamp(max=self.decay)).item() if updates else 1.0
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), weight)
        if buffers := list(self.module.buffers()):
            torch._foreach_copy_(buffers, list(model.buffers()))
        self.n_averaged += 1


@torch.no_grad()
def refresh_statistics(model: nn.Module, images: ImageSet, noise_std: float, generator: torch.Generator) -> None:
    """Recompute the running statistics of each BatchNorm, since those of the live weights do not fit their average.

    Uses up to STATISTICS_IMAGES training images with the noise of training. `generator` lives on the host. Unlike
    PyTorch's update_bn, which reads a counter of each BatchNorm for each batch, it never waits for the device."""
    norms: list[Any] = [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
    if not norms:
        model.eval()
        return
    device = next(model.parameters()).device
    indices = torch.randperm(len(images), generator=generator)[:STATISTICS_IMAGES].to(images.pixels.device)
    x = to_model(images.pixels[indices].to(device))
    x = (x + noise_std * torch.randn(x.shape, generator=generator).to(device)).clamp(-1, 1)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
    model.train()
    try:
        for index, batch in enumerate(torch.split(x, STATISTICS_BATCH)):
            for norm in norms:
                norm.momentum = 1 / (index + 1)  # the mean of all batches so far
            model(batch)
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        model.eval()
