"""Gradient passes replayed as CUDA graphs.

In a small network a GPU computes faster than the host can launch kernels. A graph is a recorded pass: a chain of 50
steps then launches 50 graphs instead of 50 times all kernels. The results are the same bits.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

EAGER_PASSES = 3  # of a shape, before it is recorded: chains and attacks repeat one shape, rests of batches do not
MAX_GRAPHS = 4  # each keeps the memory of one pass


class GraphedNetwork:
    """`network` as images (B, C, H, W) -> logits (B, K). On a CUDA GPU, passes with gradients to the images are
    recorded and replayed. Parameters must be fixed, but may be overwritten in place."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.passes: Counter[torch.Size] = Counter()
        self.graphs: dict[torch.Size, Any] = {}

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        if not (x_BCHW.is_cuda and x_BCHW.requires_grad and torch.is_grad_enabled()):
            logits_BK: Tensor = self.network(x_BCHW)
            return logits_BK
        graph = self.find_graph(x_BCHW)
        if graph is None:
            return self.network(x_BCHW)  # type: ignore[no-any-return]
        # A replay overwrites the results of the one before; a product and its gradient are new tensors
        return 1 * graph(1 * x_BCHW)  # type: ignore[no-any-return]

    def find_graph(self, x_BCHW: Tensor) -> Any:
        """The graph for this shape, recorded now if it is due; None if there is none."""
        shape = x_BCHW.shape
        self.passes[shape] += 1
        if shape not in self.graphs and self.passes[shape] > EAGER_PASSES and len(self.graphs) < MAX_GRAPHS:
            self.graphs[shape] = record(self.network, x_BCHW)
        return self.graphs.get(shape)


def record(network: nn.Module, x_BCHW: Tensor) -> Any:
    """A graph of `network` for images like x, or None if it cannot be recorded, such as for lack of memory."""
    sample = torch.zeros_like(x_BCHW).requires_grad_()
    try:
        # a function, because a module would itself be replaced by its graph
        return torch.cuda.make_graphed_callables(lambda x: network(x), (sample,), capture_error_mode="thread_local")
    except RuntimeError:
        return None
