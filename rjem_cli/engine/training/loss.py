"""The loss of Robust JEM (Korst & Asadulaev 2022, section 3), each term named.

    L = ce_weight * CE(f(x_adv), y)  +  px_weight * [ E(x) - E(x_q) ]  +  energy_l2 * [ E(x)^2 + E(x_q)^2 ]

x_adv: PGD on the batch. x_q: SGLD from the replay buffer. JEM++ is the case without attack, the robust classifier the
one with px_weight 0, the standard classifier the one with neither.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class LossTerms(NamedTuple):
    """Scalars. `total` is the weighted sum of the others. `energy_gap` near 0 means that data and samples are equally
    likely."""

    total: Tensor
    cross_entropy: Tensor
    energy_gap: Tensor
    energy_penalty: Tensor

    def unweighted(self) -> dict[str, Tensor]:
        return {name: value for name, value in self._asdict().items() if name != "total"}


def robust_jem_loss(
    logits_adv_BK: Tensor,
    labels_B: Tensor,
    energies: tuple[Tensor, Tensor] | None,
    *,
    ce_weight: float = 1.0,
    px_weight: float = 1.0,
    energy_l2: float = 0.0,
) -> LossTerms:
    """The three terms and their sum. `energies` is (E(x), E(x_q)), each (B,); None when px_weight is 0."""
    cross_entropy = F.cross_entropy(logits_adv_BK, labels_B)
    total = ce_weight * cross_entropy
    energy_gap = energy_penalty = cross_entropy.new_zeros(())
    if energies is not None:
        energy_data_B, energy_sampled_B = energies
        energy_gap = energy_data_B.mean() - energy_sampled_B.mean()
        energy_penalty = energy_data_B.square().mean() + energy_sampled_B.square().mean()
        total = total + px_weight * energy_gap + energy_l2 * energy_penalty
    return LossTerms(total, cross_entropy, energy_gap, energy_penalty)
