"""Gradient passes replayed as CUDA graphs.

The kernels of a small network finish faster than the host launches them. A CUDA graph records a pass once and replays
it with one launch forward and one backward. Results have the same bits.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from rjem_cli.errors import is_out_of_memory

EAGER_PASSES = 3  # before a shape is recorded; the last batch of a data set is often smaller and not worth it
MAX_GRAPHS = 4  # each keeps the memory of one pass


class GraphedNetwork:
    """`network` as images (B, C, H, W) -> logits (B, K). On a CUDA GPU, passes with gradients to the images are
    recorded and replayed. Parameters must be fixed, but may be overwritten in place. The backward pass must follow
    before the next forward pass, and only once."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.passes: Counter[torch.Size] = Counter()
        self.graphs: dict[torch.Size, Any] = {}

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        if not (x_BCHW.is_cuda and x_BCHW.requires_grad and torch.is_grad_enabled()):
            return self.network(x_BCHW)  # type: ignore[no-any-return]
        if graph := self.find_graph(x_BCHW):
            # A replay overwrites the results of the one before; a product and its gradient are new tensors
            return 1 * graph(1 * x_BCHW)  # type: ignore[no-any-return]
        try:
            return self.network(x_BCHW)  # type: ignore[no-any-return]
        except RuntimeError as error:
            if is_out_of_memory(error):  # smaller batches follow
                self.graphs.clear()
            raise

    def find_graph(self, x_BCHW: Tensor) -> Any:
        """The graph for this shape, recorded now if it is due; None if there is none."""
        shape = x_BCHW.shape
        self.passes[shape] += 1
        if shape not in self.graphs and self.passes[shape] > EAGER_PASSES and len(self.graphs) < MAX_GRAPHS:
            self.graphs[shape] = record(self.network, x_BCHW)
        return self.graphs.get(shape)


def record(network: nn.Module, x_BCHW: Tensor) -> Any:
    """A graph of `network` for images like x, or None if memory is too small for one, or if it cannot be recorded."""
    sample = torch.zeros_like(x_BCHW).requires_grad_()
    try:
        with torch.cuda.device(x_BCHW.device):
            # a function, because a module would itself be replaced by its graph
            return torch.cuda.make_graphed_callables(lambda x: network(x), (sample,), capture_error_mode="thread_local")
    except RuntimeError as error:
        if is_out_of_memory(error) or "captur" in str(error):
            return None
        raise
