"""Networks of other projects, each as a state_dict in that project's names and a forward pass written from the papers,
with functions of torch.nn.functional only. Nothing here uses the networks of rjem."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def random_tensor(generator: torch.Generator, *shape: int, scale: float | None = None) -> Tensor:
    fan_in = shape[1] * (shape[2] * shape[3] if len(shape) == 4 else 1) if len(shape) > 1 else 1
    return torch.randn(*shape, generator=generator) * (scale or (2 / fan_in) ** 0.5)


def add_conv(state: State, name: str, c_in: int, c_out: int, side: int, bias: bool, generator: torch.Generator) -> None:
    state[f"{name}.weight"] = random_tensor(generator, c_out, c_in, side, side)
    if bias:
        state[f"{name}.bias"] = random_tensor(generator, c_out, scale=0.1)


def add_norm(state: State, name: str, channels: int, generator: torch.Generator) -> None:
    """Statistics that are far from those of a new network."""
    state[f"{name}.weight"] = 1 + random_tensor(generator, channels, scale=0.2)
    state[f"{name}.bias"] = random_tensor(generator, channels, scale=0.2)
    state[f"{name}.running_mean"] = random_tensor(generator, channels, scale=0.3)
    state[f"{name}.running_var"] = 0.5 + torch.rand(channels, generator=generator)
    state[f"{name}.num_batches_tracked"] = torch.tensor(1234)


def add_linear(state: State, name: str, features: int, classes: int, generator: torch.Generator) -> None:
    state[f"{name}.weight"] = random_tensor(generator, classes, features)
    state[f"{name}.bias"] = random_tensor(generator, classes, scale=0.1)


def norm(state: State, name: str, x: Tensor) -> Tensor:
    if f"{name}.weight" not in state:
        return x
    parts = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(x, *parts)


def conv(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state.get(f"{name}.bias"), stride=stride, padding=weight.shape[2] // 2)


def jem_state(
    depth: int = 10, width: int = 1, classes: int = 10, batch_norm: bool = True, colours: int = 3, seed: int = 0
) -> State:
    """JEM (no norm), JEM++ and SADA-JEM: with the layers that they have and do not use."""
    g, state, channels, per_stage = torch.Generator().manual_seed(seed), State(), 16, (depth - 4) // 6
    add_conv(state, "f.conv1", colours, 16, 3, True, g)
    for stage in (1, 2, 3):
        for index in range(per_stage):
            name, out = f"f.layer{stage}.{index}", 8 * 2**stage * width
            if batch_norm:
                add_norm(state, f"{name}.bn1", channels, g)
                add_norm(state, f"{name}.bn2", out, g)
            add_conv(state, f"{name}.conv1", channels, out, 3, True, g)
            add_conv(state, f"{name}.conv2", out, out, 3, True, g)
            if channels != out or (index == 0 and stage > 1):
                add_conv(state, f"{name}.shortcut.0", channels, out, 1, True, g)
            channels = out
    if batch_norm:
        add_norm(state, "f.bn1", channels, g)
    add_linear(state, "f.linear", channels, classes, g)
    add_linear(state, "energy_output", channels, 1, g)
    add_linear(state, "class_output", channels, classes, g)
    return state


def jem_logits(state: State, x: Tensor) -> Tensor:
    """x in [-1, 1]."""
    hidden = conv(state, "f.conv1", x)
    for stage in (1, 2, 3):
        index = 0
        while f"f.layer{stage}.{index}.conv1.weight" in state:
            name, stride = f"f.layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1
            out = conv(state, f"{name}.conv1", F.leaky_relu(norm(state, f"{name}.bn1", hidden), 0.2))
            out = conv(state, f"{name}.conv2", F.leaky_relu(norm(state, f"{name}.bn2", out), 0.2), stride)
            changed = f"{name}.shortcut.0.weight" in state
            hidden = out + (conv(state, f"{name}.shortcut.0", hidden, stride) if changed else hidden)
            index += 1
    pooled = F.leaky_relu(norm(state, "f.bn1", hidden), 0.2).mean(dim=(2, 3))
    return F.linear(pooled, state["class_output.weight"], state["class_output.bias"])


def trades_state(
    depth: int = 10, width: int = 2, classes: int = 10, sub_block: bool = False, colours: int = 3, seed: int = 0
) -> State:
    """TRADES, DAT and most of RobustBench; `sub_block`: with the copy of the first stage that TRADES does not use."""
    g, state, channels, per_stage = torch.Generator().manual_seed(seed), State(), 16, (depth - 4) // 6
    add_conv(state, "conv1", colours, 16, 3, False, g)
    for stage in (1, 2, 3):
        for index in range(per_stage):
            name, out = f"block{stage}.layer.{index}", 8 * 2**stage * width
            add_norm(state, f"{name}.bn1", channels, g)
            add_conv(state, f"{name}.conv1", channels, out, 3, False, g)
            add_norm(state, f"{name}.bn2", out, g)
            add_conv(state, f"{name}.conv2", out, out, 3, False, g)
            if channels != out:
                add_conv(state, f"{name}.convShortcut", channels, out, 1, False, g)
            channels = out
    if sub_block:
        first = {key: value for key, value in state.items() if key.startswith("block1.")}
        state |= {f"sub_{key}": value + 1 for key, value in first.items()}
    add_norm(state, "bn1", channels, g)
    add_linear(state, "fc", channels, classes, g)
    return state


def trades_logits(state: State, x: Tensor) -> Tensor:
    """x as the network sees it: in [0, 1], and normalised where the project does that."""
    hidden = conv(state, "conv1", x)
    for stage in (1, 2, 3):
        index = 0
        while f"block{stage}.layer.{index}.conv1.weight" in state:
            name, stride = f"block{stage}.layer.{index}", 2 if stage > 1 and index == 0 else 1
            activated = F.relu(norm(state, f"{name}.bn1", hidden))
            out = F.relu(norm(state, f"{name}.bn2", conv(state, f"{name}.conv1", activated, stride)))
            changed = f"{name}.convShortcut.weight" in state
            shortcut = conv(state, f"{name}.convShortcut", activated, stride) if changed else hidden
            hidden = conv(state, f"{name}.conv2", out) + shortcut
            index += 1
    pooled = F.relu(norm(state, "bn1", hidden)).mean(dim=(2, 3))
    return F.linear(pooled, state["fc.weight"], state["fc.bias"])


RESNET_BLOCKS = (3, 4, 6, 3)


def resnet50_state(classes: int = 10, colours: int = 3, seed: int = 0) -> State:
    """MadryLab's ResNet-50 for CIFAR."""
    g, state, channels = torch.Generator().manual_seed(seed), State(), 64
    add_conv(state, "conv1", colours, 64, 3, False, g)
    add_norm(state, "bn1", 64, g)
    for stage, count in enumerate(RESNET_BLOCKS, start=1):
        inner, out = 32 * 2**stage, 128 * 2**stage
        for index in range(count):
            name = f"layer{stage}.{index}"
            for number, (c_in, c_out, side) in enumerate(((channels, inner, 1), (inner, inner, 3), (inner, out, 1)), 1):
                add_conv(state, f"{name}.conv{number}", c_in, c_out, side, False, g)
                add_norm(state, f"{name}.bn{number}", c_out, g)
            state[f"{name}.bn3.weight"] /= 4  # so that 16 sums do not grow beyond all measure
            if index == 0:
                add_conv(state, f"{name}.shortcut.0", channels, out, 1, False, g)
                add_norm(state, f"{name}.shortcut.1", out, g)
            channels = out
    add_linear(state, "linear", channels, classes, g)
    return state


def resnet50_logits(state: State, x: Tensor) -> Tensor:
    """x in [0, 1], normalised."""
    hidden = F.relu(norm(state, "bn1", conv(state, "conv1", x)))
    for stage, count in enumerate(RESNET_BLOCKS, start=1):
        for index in range(count):
            name, stride = f"layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1
            out = F.relu(norm(state, f"{name}.bn1", conv(state, f"{name}.conv1", hidden)))
            out = F.relu(norm(state, f"{name}.bn2", conv(state, f"{name}.conv2", out, stride)))
            out = norm(state, f"{name}.bn3", conv(state, f"{name}.conv3", out))
            if index == 0:
                hidden = norm(state, f"{name}.shortcut.1", conv(state, f"{name}.shortcut.0", hidden, stride))
            hidden = F.relu(out + hidden)
    return F.linear(hidden.mean(dim=(2, 3)), state["linear.weight"], state["linear.bias"])


SECOND_NAMES = ("layer_one", "other_layers.0", "other_layers.1", "other_layers.2", "other_layers.3")
FIRST_NAMES = ("conv1", "layer1", "layer2", "layer3", "bn1")


def doubled(state: State) -> State:
    """As JEM++ with `--model yopo` saves: parts of f under two names, and one tensor for both."""
    copies = {}
    for name, tensor in state.items():
        for first, second in zip(FIRST_NAMES, SECOND_NAMES):
            if name.startswith(f"f.{first}."):
                copies[name.replace(f"f.{first}.", f"f.{second}.")] = tensor
    return state | copies


def prefixed(state: State, prefix: str = "module.") -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def robustness_state(state: State, mean: Tensor, std: Tensor) -> State:
    """As MadryLab's library saves a model: mean and std (C, 1, 1), and all weights a second time in the attacker."""
    normalizer, again = {"new_mean": mean, "new_std": std}, prefixed(state, "module.attacker.model.")
    both = prefixed(normalizer, "module.normalizer.") | prefixed(normalizer, "module.attacker.normalize.")
    return prefixed(state, "module.model.") | both | again
