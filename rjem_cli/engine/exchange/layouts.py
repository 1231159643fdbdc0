"""How other projects name the tensors of a network. Each layout maps the names of rjem to those of the project, in one
direction only: import and export use the same map.
"""

import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rjem_cli.config.training import ModelOptions
from rjem_cli.engine.networks.build import build_model

Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, Tensor]
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # of MadryLab's library
# of DAT (Yin et al. 2025), for images in [0, 1]
DAT_MEAN = (0.4913997551666284, 0.48215855929893703, 0.4465309133731618)
DAT_STD = (0.24703225141799082, 0.24348516474564, 0.26158783926049628)
NORMALIZER = ("normalizer.mean", "normalizer.std")
MAX_BLOCKS = 100  # per stage: a depth of 604
COUNTER = ".num_batches_tracked"  # files of PyTorch 0.4.0 and older have none


class NoMatchError(Exception):
    """Why a state_dict does not have a layout."""


@dataclass(frozen=True)
class Layout:
    """`rename`: (a tensor's name in rjem, blocks per stage) to its name in the project. `seconds`: prefixes of tensors
    that are copies, and the prefix of what they copy; `always_doubled`: every file has them. `unused`: tensors that the
    project's code creates and never uses, which `fill` makes for a network. `normalizer`: names of mean and std in the
    file; `mean` and `std` hold where it has none. `key`, `prefix`: where the project looks for the tensors."""

    name: str
    arch: str
    rename: Callable[[str, int], str]
    read_options: Callable[[Shapes], ModelOptions]
    unused: re.Pattern[str] = re.compile(r"n_averaged$")
    fill: Callable[[Tensors], Tensors] = lambda tensors: {}
    seconds: tuple[tuple[str, str], ...] = ()
    always_doubled: bool = False
    normalizer: tuple[str, str] | None = None
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    key: str | None = None
    prefix: str = ""

    def default_normalizer(self, channels: int) -> dict[str, Tensor]:
        """Mean and standard deviation (C,) of images in [0, 1], as tensors of rjem's normaliser; of grey images the
        mean over the colours."""
        values = (torch.tensor(colours) for colours in (self.mean, self.std))
        return dict(zip(NORMALIZER, (value if channels > 1 else value.mean(dim=0, keepdim=True) for value in values)))

    def original(self, name: str) -> str | None:
        """The name of the tensor that this one copies; None for a tensor that copies no other."""
        return next((first + name[len(second) :] for second, first in self.seconds if name.startswith(second)), None)

    def copies(self, name: str) -> list[str]:
        """The names of the copies of a tensor."""
        return [second + name[len(first) :] for second, first in self.seconds if name.startswith(first)]


@dataclass(frozen=True)
class Match:
    """A state_dict that has a layout. `names`: the tensors of the network, and what they are called in the file."""

    layout: Layout
    options: ModelOptions
    channels: int
    classes: int
    names: dict[str, str]
    ignored: tuple[str, ...]


def match_layout(layout: Layout, shapes: Shapes) -> Match:
    """Raises NoMatchError, which says what is missing."""
    stem = "body.conv1.weight" if layout.arch == "resnet50" else "stem.weight"
    channels = find_shape(shapes, layout.rename(stem, 1), 4)[1]
    classes = find_shape(shapes, layout.rename("head.weight", 1), 2)[0]
    if channels not in (1, 3) or not classes:
        raise NoMatchError(f"{channels} channels and {classes} classes")
    options = layout.read_options(shapes)
    expected = describe_network(options, channels, classes)
    names = their_names(layout, options, expected)
    check_shapes({theirs: expected[ours] for ours, theirs in names.items()}, shapes)
    used = {*names.values(), *(layout.normalizer or ())}
    others = [name for name in shapes if name not in used]
    ignored = [name for name in others if layout.original(name) in used or layout.unused.match(name)]
    if unknown := [name for name in others if name not in ignored]:
        raise NoMatchError(f"{len(unknown)} unknown tensors, such as {unknown[0]}")
    return Match(layout, options, channels, classes, names, tuple(ignored))


def find_shape(shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    if name not in shapes:
        raise NoMatchError(f"no {name}")
    if len(shapes[name]) != dimensions:
        raise NoMatchError(f"{name} has {len(shapes[name])} dimensions, not {dimensions}")
    return shapes[name]


def check_shapes(expected: Shapes, shapes: Shapes) -> None:
    missing = [name for name in expected if name not in shapes and not name.endswith(COUNTER)]
    if missing:
        raise NoMatchError(f"{len(missing)} missing tensors, such as {missing[0]}")
    for name, shape in expected.items():
        if name in shapes and shapes[name] != shape:
            raise NoMatchError(f"{name} is {shapes[name]}, not {shape}")


def describe_network(options: ModelOptions, channels: int, classes: int) -> Shapes:
    """The tensors of a network of rjem, without its memory."""
    with torch.device("meta"):
        model = build_model(options, channels, classes)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def their_names(layout: Layout, options: ModelOptions, ours: Iterable[str]) -> dict[str, str]:
    """The normaliser apart, which not every file has."""
    count = (options.depth - 4) // 6
    return {name: layout.rename(name, count) for name in ours if not name.startswith("normalizer.")}


# --- wide ResNets ---


@dataclass(frozen=True)
class WideNames:
    """What a project calls the parts of a wide ResNet. `block` has the stage, from 1, and the block in it."""

    stem: str
    block: str
    norm: str
    head: str
    shortcut: str

    def rename(self, name: str, per_stage: int) -> str:
        part, _, rest = name.partition(".")
        if part != "blocks":
            return f"{getattr(self, part)}.{rest}"
        index, layer, tensor = rest.split(".")
        stage, block = divmod(int(index), per_stage)
        theirs = self.shortcut if layer == "shortcut" else layer.replace("norm", "bn")
        return f"{self.block.format(stage + 1, block)}.{theirs}.{tensor}"

    def read_depth_and_width(self, shapes: Shapes) -> dict[str, Any]:
        """From the number of blocks in the first stage, and the channels of its first convolution."""
        first = self.block.format(1, 0)
        count = next(
            count for count in itertools.count() if f"{self.block.format(1, count)}.conv1.weight" not in shapes
        )
        width, rest = divmod(find_shape(shapes, f"{first}.conv1.weight", 4)[0], 16)
        if not 0 < count <= MAX_BLOCKS:
            raise NoMatchError(f"{count} blocks per stage")
        if rest or not width:
            raise NoMatchError(f"{first}.conv1.weight has no multiple of 16 channels")
        return {"depth": 6 * count + 4, "width": width}


JEM_NAMES = WideNames("f.conv1", "f.layer{}.{}", "f.bn1", "class_output", "shortcut.0")
TRADES_NAMES = WideNames("conv1", "block{}.layer.{}", "bn1", "fc", "convShortcut")
# JEM++ (`--model yopo`) stores the stem, the stages and the last norm of `f` under second names
YOPO_NAMES = (
    ("f.layer_one.", "f.conv1."),
    ("f.other_layers.0.", "f.layer1."),
    ("f.other_layers.1.", "f.layer2."),
    ("f.other_layers.2.", "f.layer3."),
    ("f.other_layers.3.", "f.bn1."),
)
# robustness stores the network a second time, in its attacker
ATTACKER_NAMES = (("attacker.model.", "model."), ("attacker.normalize.", "normalizer."))


def read_jem_options(shapes: Shapes) -> ModelOptions:
    """With batch norm or none."""
    norms = {name.rpartition(".")[2] for name in shapes if name.startswith("f.bn1.")}
    if norms and "running_mean" not in norms:
        kind = "ActNorm" if "loc" in norms else "layer norm"
        raise NoMatchError(f"f.bn1 is {kind}, which rjem does not have")
    norm_layer = "batch" if norms else "none"
    return ModelOptions.from_dict(JEM_NAMES.read_depth_and_width(shapes) | {"norm_layer": norm_layer})


def read_jem_without_norm(shapes: Shapes) -> ModelOptions:
    options = read_jem_options(shapes)
    if options.norm_layer != "none":
        raise NoMatchError("it has batch norm, as --layout jempp")
    return options


def read_trades_options(shapes: Shapes) -> ModelOptions:
    return ModelOptions.from_dict(TRADES_NAMES.read_depth_and_width(shapes) | {"arch": "wrn-trades"})


def fill_jempp(tensors: Tensors) -> Tensors:
    """A head for unconditional energies, which the code of JEM has and does not train."""
    width = tensors["class_output.weight"].shape[1]
    return {"energy_output.weight": torch.zeros(1, width), "energy_output.bias": torch.zeros(1)}


def fill_jem(tensors: Tensors) -> Tensors:
    """And a second classifier, in the wide ResNet itself, always of 10 classes."""
    width = tensors["class_output.weight"].shape[1]
    return fill_jempp(tensors) | {"f.linear.weight": torch.zeros(10, width), "f.linear.bias": torch.zeros(10)}


def fill_trades(tensors: Tensors) -> Tensors:
    """A second first stage."""
    return {f"sub_{name}": tensor for name, tensor in tensors.items() if name.startswith("block1.")}


# --- ResNet-50 ---


def rename_resnet50(name: str, per_stage: int) -> str:
    """`body.layer1.0.downsample.0.weight` -> `model.layer1.0.shortcut.0.weight`, `head.bias` -> `model.linear.bias`."""
    part, _, rest = name.partition(".")
    return f"model.linear.{rest}" if part == "head" else f"model.{rest.replace('downsample', 'shortcut')}"


def read_resnet50_options(shapes: Shapes) -> ModelOptions:
    return ModelOptions(arch="resnet50")


UNUSED_BY_JEM = re.compile(r"f\.linear\.|energy_output\.|n_averaged$")
UNUSED_BY_TRADES = re.compile(r"sub_block1\.|n_averaged$|mu$|sigma$")
JEM = Layout(
    "jem",
    "wrn",
    JEM_NAMES.rename,
    read_jem_without_norm,
    UNUSED_BY_JEM,
    fill_jem,
    key="model_state_dict",
)
JEMPP = replace(JEM, name="jempp", read_options=read_jem_options, fill=fill_jempp, seconds=YOPO_NAMES)
TRADES = Layout(
    "trades",
    "wrn-trades",
    TRADES_NAMES.rename,
    read_trades_options,
    UNUSED_BY_TRADES,
    fill_trades,
)
ROBUSTNESS = Layout(
    "robustness",
    "resnet50",
    rename_resnet50,
    read_resnet50_options,
    seconds=ATTACKER_NAMES,
    always_doubled=True,
    normalizer=("normalizer.new_mean", "normalizer.new_std"),
    mean=CIFAR_MEAN,
    std=CIFAR_STD,
    key="model",
    prefix="module.",
)
LAYOUTS = {
    layout.name: layout
    for layout in (
        JEM,
        JEMPP,
        replace(JEMPP, name="sadajem", seconds=()),
        TRADES,
        replace(TRADES, name="dat", fill=lambda tensors: {}, mean=DAT_MEAN, std=DAT_STD),
        ROBUSTNESS,
    )
}
