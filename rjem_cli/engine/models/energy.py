"""A classifier read as an energy-based model (Grathwohl et al. 2020).

Shapes: B batch, K classes. Energies are unbounded; low means likely.
"""

import torch
from torch import Tensor


def energy(logits_BK: Tensor) -> Tensor:
    """E(x) = -logsumexp_y f(x)[y], shape (B,). p(x) is proportional to exp(-E(x))."""
    return -torch.logsumexp(logits_BK, dim=1)


def joint_energy(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """E(x, y) = -f(x)[y], shape (B,)."""
    return -logits_BK.gather(1, labels_B[:, None]).squeeze(1)
