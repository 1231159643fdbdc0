"""What an attack ascends, one number an image, and when it has won.

Shapes: B batch, K classes. `labels_B` are the true classes of an untargeted attack and the wanted ones of a targeted
attack.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

AttackLoss = Callable[[Tensor, Tensor], Tensor]  # logits (B, K), labels (B,) -> (B,)


def cross_entropy(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """-log p(y | x), (B,). Its gradient vanishes in float32 where the network is sure."""
    return F.cross_entropy(logits_BK, labels_B, reduction="none")


def margin(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """max_{j != y} f_j - f_y, (B,): positive where y is not the largest (Carlini & Wagner 2017). Never saturates."""
    own = F.one_hot(labels_B, logits_BK.shape[1]).bool()
    others_B = logits_BK.masked_fill(own, float("-inf")).amax(dim=1)
    return others_B - logits_BK.gather(1, labels_B[:, None]).squeeze(1)


LOSSES: dict[str, AttackLoss] = {"ce": cross_entropy, "margin": margin}


def attack_loss(name: str, targeted: bool) -> AttackLoss:
    """The loss to ascend: away from the true class, or (targeted) towards the wanted one."""
    loss = LOSSES[name]
    return (lambda logits_BK, labels_B: -loss(logits_BK, labels_B)) if targeted else loss


def is_hit(logits_BK: Tensor, labels_B: Tensor, targeted: bool) -> Tensor:
    """Whether the attack has won, bool (B,); not by logits that are no numbers."""
    agrees = logits_BK.argmax(dim=1) == labels_B
    return (agrees if targeted else ~agrees) & ~logits_BK.isnan().any(dim=1)
