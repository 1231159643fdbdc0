"""A copy of the network for gradients with respect to images: parameters and BatchNorm statistics are fixed.

With fixed statistics a sample depends on its own seed only, never on the other images of its batch. BatchNorm is then
an affine map per channel. The one after a convolution becomes part of it, the others a scale and a shift. That takes
fewer passes over memory than BatchNorm in eval mode and gives the same output.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from rjem_cli.engine.gradients import LogitsFn
from rjem_cli.engine.kernels import Kernels
from rjem_cli.engine.models.graphs import StepGraphs
from rjem_cli.engine.networks.resnet50 import SmallImageResNet50
from rjem_cli.engine.networks.trades_wide_resnet import TradesWideResNet
from rjem_cli.engine.networks.wide_resnet import Block, GroupNorm, WideResNet

COPIED = (TradesWideResNet, SmallImageResNet50)
BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
PLAIN_MODULES = {*BATCH_NORMS, WideResNet, Block, nn.Conv2d, GroupNorm, nn.Identity, nn.Linear, nn.Sequential}
# Of fp16 passes, where gradients below 6e-8 vanish and those above 65504 / 1024 overflow. It is fixed, so that a step
# depends on the weights only (section 3.2, Micikevicius et al. 2018).
GRADIENT_SCALE = 1024.0


class ChannelAffine(nn.Module):
    """x -> scale * x + shift per channel: BatchNorm with fixed statistics."""

    scale: Tensor
    shift: Tensor

    def __init__(self, batch_norm: Any):
        super().__init__()
        for name in ("scale", "shift"):
            self.register_buffer(name, torch.empty_like(batch_norm.bias.detach())[:, None, None])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x_BCHW, self.scale)


def compute_affines(batch_norms: list[Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Scales and shifts, each (C,), of BatchNorms that use their running statistics (section 3.1, Ioffe & Szegedy
    2015): weight / sqrt(var + eps) and bias - mean * scale."""
    roots = torch._foreach_add([norm.running_var for norm in batch_norms], [norm.eps for norm in batch_norms])
    torch._foreach_rsqrt_(roots)
    scales = torch._foreach_mul([norm.weight for norm in batch_norms], roots)
    shifts = torch._foreach_mul([norm.running_mean for norm in batch_norms], scales)
    return list(scales), list(torch._foreach_sub([norm.bias for norm in batch_norms], shifts))


def is_plain(model: nn.Module) -> bool:
    """Whether it is a WideResNet that computes only what its layers say. Hooks, subclasses and parametrizations (which
    are subclasses) may do more."""
    return type(model) is WideResNet and all(
        type(module) in PLAIN_MODULES
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
        for module in model.modules()
    )


def freeze(model: nn.Module) -> nn.Module:
    """A network with the output of `model.eval()`, for gradients with respect to images.

    A plain WideResNet is copied, and its BatchNorms become part of its convolutions. The other networks of rjem are
    copied. A user's network may read its own layers, or may not allow a copy: it is returned as it is, in eval mode.
    """
    if not is_plain(model) and not isinstance(model, COPIED):
        return model.eval()
    frozen: Any = copy.deepcopy(model).eval().requires_grad_(False)
    if is_plain(model) and isinstance(frozen.norm, BATCH_NORMS):
        frozen.norm = ChannelAffine(frozen.norm)
        for block in frozen.blocks:
            block.norm1, block.norm2 = ChannelAffine(block.norm1), nn.Identity()
    refresh(frozen, model)
    return frozen  # type: ignore[no-any-return]


@torch.no_grad()
def refresh(frozen: Any, model: Any) -> None:
    """Copy the current weights and statistics of a network of rjem into `frozen`, which `freeze(model)` made. Tensors
    keep their storage, because compiled passes hold references to them. A training step does this once, so it handles
    all layers in each operation: a GPU then gets few kernels."""
    current, copied = model.state_dict(), frozen.state_dict()
    folds = isinstance(getattr(frozen, "norm", None), ChannelAffine)  # then each conv1 is computed below
    names = [name for name in copied if name in current and not (folds and ".conv1." in name)]
    torch._foreach_copy_([copied[name] for name in names], [current[name] for name in names])
    if not folds:
        return
    scales, shifts = compute_affines([model.norm, *(block.norm1 for block in model.blocks)])
    affines = [frozen.norm, *(block.norm1 for block in frozen.blocks)]
    torch._foreach_copy_([affine.scale for affine in affines], [scale[:, None, None] for scale in scales])
    torch._foreach_copy_([affine.shift for affine in affines], [shift[:, None, None] for shift in shifts])
    # not fuse_conv_bn_eval: its formula for the bias differs from ours in the last bit
    scales, shifts = compute_affines([block.norm2 for block in model.blocks])
    convolutions, targets = ([block.conv1 for block in network.blocks] for network in (model, frozen))
    weights = [conv.weight * scale[:, None, None, None] for conv, scale in zip(convolutions, scales)]
    biases = torch._foreach_mul([conv.bias for conv in convolutions], scales)
    torch._foreach_add_(biases, shifts)
    torch._foreach_copy_([conv.weight for conv in targets], weights)
    torch._foreach_copy_([conv.bias for conv in targets], biases)


class ScaledGradient(torch.autograd.Function):
    """The identity, with its gradient multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * gradient, None


class FrozenLogits:
    """A frozen network as x (B, C, H, W) -> fp32 logits (B, K).

    It may compute in bf16 or fp16, and `compiled`; `run_step` may replay its steps as CUDA `graphs`. Images and logits
    are fp32, so the state of a chain is never rounded. In half precision a copy has half-precision weights; a network
    that `freeze` does not copy runs in autocast, and without graphs.
    """

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype = torch.float32,
        compiled: bool = False,
        kernels: Kernels = Kernels(),
        graphs: bool = False,
    ):
        self.dtype, self.kernels, self.network = dtype, kernels, freeze(model)
        self.autocast = self.network is model and dtype is not torch.float32
        if self.network is not model:
            self.network.to(dtype)
        self.compute: LogitsFn = torch.compile(self.network, dynamic=False) if compiled else self.network
        self.graphs = StepGraphs() if graphs and not compiled and self.network is not model else None
        self.thread_safe = not compiled and self.network is not model  # a user's network may keep state

    def refresh(self, model: nn.Module) -> "FrozenLogits":
        """Copy the current weights and statistics of `model`, which the network is a copy of."""
        refresh(self.network, model)
        return self

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """A backward pass needs `kernels.active()` too, which `value_and_grad` provides."""
        with self.kernels.active():
            if self.dtype is not torch.float16:
                return self.forward(x_BCHW)
            logits_BK = self.forward(ScaledGradient.apply(x_BCHW, 1 / GRADIENT_SCALE))
            return ScaledGradient.apply(logits_BK, GRADIENT_SCALE)  # type: ignore[no-any-return]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not self.autocast:
            return self.compute(x_BCHW.to(self.dtype)).float()
        with torch.autocast(x_BCHW.device.type, self.dtype):
            return self.compute(x_BCHW).float()
