"""torch.cuda.make_graphed_callables: a pass has static tensors, which each replay overwrites."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tests.pretend_cuda.device import PretendCuda

Pass = Callable[[Tensor], Tensor]


def graphed_callables(cuda: PretendCuda) -> Callable[..., Pass]:
    def make_graphed_callables(function: Pass, sample_args: tuple[Tensor], **options: Any) -> Pass:
        (static_x,) = sample_args
        with torch.enable_grad():
            static_y = function(static_x)
            static_gradient = torch.autograd.grad(static_y.sum(), static_x)[0]
        static_y = static_y.detach()

        class Graphed(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                ctx.save_for_backward(x.detach().clone())
                with replaying(cuda), torch.no_grad():
                    static_y.copy_(function(x))
                return static_y.detach()

            @staticmethod
            def backward(ctx: Any, gradient: Tensor) -> Tensor:
                (x,) = ctx.saved_tensors
                with replaying(cuda), torch.enable_grad():
                    x.requires_grad_()
                    static_gradient.copy_(torch.autograd.grad(function(x), x, gradient)[0])
                return static_gradient.detach()

        return Graphed.apply

    return make_graphed_callables


@contextlib.contextmanager
def replaying(cuda: PretendCuda) -> Iterator[None]:
    """One launch, whatever is inside. Raises RuntimeError for what cannot be recorded in a graph."""
    with cuda.recording() as inside:
        yield
    if inside.syncs or inside.copies:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
    cuda.record.products += inside.products
    cuda.record_launches("graph")
