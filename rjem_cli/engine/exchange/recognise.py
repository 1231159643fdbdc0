"""Which layout a file has, and the weights of its network under the names of rjem."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rjem_cli.engine.exchange.layouts import COUNTER, LAYOUTS, NORMALIZER, Layout, Match, NoMatchError, match_layout
from rjem_cli.engine.exchange.states import State, find_buffer, find_states
from rjem_cli.engine.exchange.torch_file import TorchFile
from rjem_cli.errors import DataError

VARIANCES = ".running_var"
MU_SIGMA = ("mu", "sigma")  # as files of RobustBench name mean and standard deviation
AUTO_LAYOUTS = ("jem", "jempp", "trades", "robustness")  # the others share the names of one of these


@dataclass(frozen=True)
class ForeignNetwork:
    """A network of another project. `weights`: as rjem names them, on the host, with those of the normaliser. `unused`:
    what the file has beside them, as the project names it. `buffer`: float (N, C, H, W) in [-1, 1], if the file has
    one. `doubled`: whether the file stores tensors under two names."""

    match: Match
    place: str
    weights: dict[str, Tensor]
    unused: dict[str, Tensor]
    buffer: Tensor | None
    doubled: bool
    notes: tuple[str, ...]


def recognise(file: TorchFile, layout: str = "auto") -> ForeignNetwork:
    """Raises DataError for a file that has none of the layouts, and says what each missed; or with damaged tensors."""
    states = find_states(file.content)
    if not states:
        what = "a replay buffer, but no network" if find_buffer(file.content) else "no tensors under names"
        raise DataError(f"{file.path} has {what}; give the file with the network's state_dict")
    candidates = [LAYOUTS[name] for name in (AUTO_LAYOUTS if layout == "auto" else (layout,))]
    reasons: dict[str, str] = {}
    for state in states:
        for candidate in candidates:
            try:
                match = match_layout(candidate, {name: part.shape for name, part in state.tensors.items()})
            except NoMatchError as error:
                reasons[candidate.name] = str(error)
            else:
                match = replace(match, layout=refine_layout(candidate, file) if layout == "auto" else candidate)
                return load_network(file, state, match)
    tried = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise DataError(f"{file.path} has no layout that rjem reads ({tried})")


def refine_layout(layout: Layout, file: TorchFile) -> Layout:
    """DAT saves the names of TRADES, and beside them the state of its training."""
    is_dat = layout.name == "trades" and isinstance(file.content, dict) and "training_state" in file.content
    return LAYOUTS["dat"] if is_dat else layout


def load_network(file: TorchFile, state: State, match: Match) -> ForeignNetwork:
    tensors = {name: file.read_tensor(part) for name, part in state.tensors.items()}
    check_doubled(file, match, tensors)
    weights, notes = {}, []
    for ours, theirs in match.names.items():
        tensor = tensors.get(theirs, torch.tensor(0))  # a counter that old files do not have
        weights[ours] = tensor.long() if ours.endswith(COUNTER) else tensor.float()
    if converted := {str(tensors[name].dtype) for name in match.names.values() if name in tensors} - {
        "torch.float32",
        "torch.int64",
    }:
        notes.append(f"converted to float32 from {', '.join(sorted(converted)).replace('torch.', '')}")
    if match.layout.arch != "wrn":
        weights |= read_normalizer(match, tensors)
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise DataError(f"{file.path} has weights that are not finite; use another checkpoint")
    variances = [name for name, part in weights.items() if name.endswith(VARIANCES) and not (part >= 0).all()]
    if variances or not (weights.get(NORMALIZER[1], torch.ones(1)) > 0).all():
        raise DataError(f"{file.path} has a variance below 0, or normalises by 0; use another checkpoint")
    doubled = any(match.layout.original(name) for name in match.ignored)
    unused = {name: tensors[name].clone() for name in match.ignored if match.layout.original(name) is None}
    return ForeignNetwork(match, state.place, weights, unused, read_buffer(file, match, notes), doubled, tuple(notes))


def check_doubled(file: TorchFile, match: Match, tensors: dict[str, Tensor]) -> None:
    """Raises DataError if the two copies of a tensor differ: it is not known which one the network uses."""
    for name in match.ignored:
        original = match.layout.original(name)
        if original is not None and not torch.equal(tensors[name], tensors[original]):
            raise DataError(f"{file.path}: {name} and {original} should be equal, but differ; export it again")


def read_normalizer(match: Match, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mean and standard deviation (C,) of images in [0, 1]: those of the file, else those of the project."""
    layout, channels = match.layout, match.channels
    for names in (layout.normalizer, MU_SIGMA):
        if names and all(name in tensors and tensors[name].numel() == channels for name in names):
            return dict(zip(NORMALIZER, (tensors[name].float().flatten() for name in names)))
    return layout.default_normalizer(channels)


def read_buffer(file: TorchFile, match: Match, notes: list[str]) -> Tensor | None:
    """JEM does not clamp its chains; rjem does. A buffer of other values is left out, with a note."""
    stored = find_buffer(file.content)
    if stored is None:
        return None
    buffer = file.read_tensor(stored)
    if not buffer.is_floating_point() or buffer.shape[1] != match.channels or not len(buffer):
        notes.append(f"left out the replay buffer: {tuple(buffer.shape)}, {str(buffer.dtype).removeprefix('torch.')}")
        return None
    if not buffer.isfinite().all():
        notes.append("left out the replay buffer: it is not finite")
        return None
    return buffer.float().clamp(-1, 1)
