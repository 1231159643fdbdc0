"""An optimizer's state as named tensors, so that it fits in a safetensors file."""

from __future__ import annotations

import torch
from torch import Tensor

PREFIX = "optimizer."


def below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, named without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`optimizer.<parameter>.<name>` for every tensor: momentum of SGD, moments and step counts of Adam."""
    return {
        f"{PREFIX}{parameter}.{name}": value
        for parameter, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse; the groups' settings stay those of `optimizer`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in below(PREFIX, tensors).items():
        parameter, name = key.split(".", 1)
        state.setdefault(int(parameter), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
