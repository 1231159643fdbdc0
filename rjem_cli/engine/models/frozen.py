"""The network as chains see it: parameters fixed, BatchNorm's running statistics fixed and folded into the weights.

With frozen statistics a sample depends on its own seed only, never on its batch-mates. BatchNorm is then an affine
map per channel: the one behind a convolution becomes part of it, the ones behind a sum become a scale and a shift:
fewer passes over memory than BatchNorm in eval mode, and the same output.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rjem_cli.engine.models.wide_resnet import Block

ModuleT = TypeVar("ModuleT", bound=nn.Module)
# inside of fp16 passes, where gradients below 6e-8 vanish and those beyond 65504 / 1024 overflow: fixed, so that no
# state but the weights' decides a step (section 3.2, Micikevicius et al. 2018)
GRADIENT_SCALE = 1024.0


class ChannelAffine(nn.Module):
    """x -> scale * x + shift per channel: what BatchNorm with fixed statistics computes."""

    scale: Tensor
    shift: Tensor

    def __init__(self, batch_norm: nn.Module):
        super().__init__()
        scale, shift = affine_of(batch_norm)
        self.register_buffer("scale", scale[:, None, None])
        self.register_buffer("shift", shift[:, None, None])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x_BCHW, self.scale)


def affine_of(batch_norm: Any) -> tuple[Tensor, Tensor]:
    """Scale and shift, each (C,), of a BatchNorm that uses its running statistics (section 3.1,
    Ioffe & Szegedy 2015)."""
    scale = batch_norm.weight.detach() * torch.rsqrt(batch_norm.running_var + batch_norm.eps)
    return scale, batch_norm.bias.detach() - batch_norm.running_mean * scale


@torch.no_grad()
def freeze(model: ModuleT) -> ModuleT:
    """A copy of `model` whose parameters need no gradient and whose output equals `model.eval()`'s. The model itself is
    untouched."""
    frozen = deep_copy(model).eval().requires_grad_(False)
    for module in list(frozen.modules()):
        if isinstance(module, Block) and can_fold(module):
            weight, bias = folded_convolution(module)
            module.conv1.weight.copy_(weight)
            module.conv1.bias.copy_(bias)  # type: ignore[union-attr]
            module.norm2 = nn.Identity()
    replace_batch_norms(frozen)
    return frozen


def deep_copy(model: ModuleT) -> ModuleT:
    """Copy a network, also one with the old `weight_norm` or `spectral_norm`. Their hooks store a computed, non-leaf
    weight, which `deepcopy` refuses. The next forward pass recomputes it."""
    attributes = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    copies = {id(value): value.detach().clone() for value in attributes if not value.is_leaf}
    return copy.deepcopy(model, copies)


@torch.no_grad()
def refresh(frozen: nn.Module, model: nn.Module) -> None:
    """Copy the current weights and statistics of `model` into `frozen`, which `freeze(model)` made. Tensors keep their
    storage, because compiled passes hold references to them."""
    folding = {
        f"{name}.conv1": block for name, block in model.named_modules() if isinstance(block, Block) and can_fold(block)
    }
    for name, source in model.named_modules():
        target: Any = frozen.get_submodule(name)
        if name in folding:
            weight, bias = folded_convolution(folding[name])
            target.weight.copy_(weight)
            target.bias.copy_(bias)
        elif isinstance(target, ChannelAffine):
            scale, shift = affine_of(source)
            target.scale.copy_(scale[:, None, None])
            target.shift.copy_(shift[:, None, None])
        else:
            for key, tensor in (*target.named_parameters(recurse=False), *target.named_buffers(recurse=False)):
                tensor.copy_(getattr(source, key))


class ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:  # type: ignore[override]
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.factor * gradient, None


class FrozenLogits:
    """A frozen network as x (B, C, H, W) -> fp32 logits (B, K). It may compute in bf16 or fp16, and `compiled`; what it
    is given and gives is fp32, so no chain's state is ever rounded."""

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32, compiled: bool = False):
        self.dtype = dtype
        self.network = freeze(model).to(dtype)
        self.compute: nn.Module = torch.compile(self.network) if compiled else self.network  # type: ignore[assignment]

    def follow(self, model: nn.Module) -> FrozenLogits:
        """Take over the weights and statistics that `model` has now."""
        refresh(self.network, model)
        return self

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        if self.dtype is not torch.float16:
            return self.compute(x_BCHW.to(self.dtype)).float()  # type: ignore[no-any-return]
        x_BCHW = ScaledGradient.apply(x_BCHW, 1 / GRADIENT_SCALE)
        logits_BK: Tensor = self.compute(x_BCHW.half()).float()
        return ScaledGradient.apply(logits_BK, GRADIENT_SCALE)  # type: ignore[no-any-return]


def is_plain_batch_norm(module: nn.Module) -> bool:
    """Whether the module computes BatchNorm with running statistics and nothing else: a subclass or a hook may do
    more."""
    if type(module) not in (nn.BatchNorm2d, nn.SyncBatchNorm):
        return False
    return bool(module.affine) and bool(module.track_running_stats) and not has_hooks(module)


def has_hooks(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or parametrize.is_parametrized(module)


def can_fold(block: Block) -> bool:
    """Whether norm2(conv1(x)) can be one convolution."""
    return is_plain_batch_norm(block.norm2) and block.conv1.bias is not None


def folded_convolution(block: Block) -> tuple[Tensor, Tensor]:
    """Weight and bias of norm2(conv1(x)) as one convolution."""
    scale, shift = affine_of(block.norm2)
    assert block.conv1.bias is not None
    return block.conv1.weight * scale[:, None, None, None], block.conv1.bias * scale + shift


def replace_batch_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if is_plain_batch_norm(child):
            setattr(module, name, ChannelAffine(child))
        else:
            replace_batch_norms(child)
