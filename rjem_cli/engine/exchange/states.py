"""Find the state_dicts in a file of another project: nested dicts, whole modules, prefixes of wrappers."""

from collections.abc import Iterator
from dataclasses import dataclass

from rjem_cli.engine.exchange.inert_pickle import StoredTensor, Unknown, Value

MAX_DEPTH = 4  # of nested dicts
MAX_VALUES = 20_000  # that are looked at
MAX_KEY = 200  # characters of a name
MAX_PREFIXES = 8  # one inside of the other
# of DataParallel, of torch.compile, and of wrappers that train, attack or normalise
PREFIXES = ("module.", "model.", "_orig_mod.", "net.")
OUTER_KEYS = {"n_averaged", "mu", "sigma"}  # which a wrapper adds without its prefix
BUFFER_KEY = "replay_buffer"


@dataclass(frozen=True)
class State:
    """Tensors by name, without the prefixes of wrappers. `place`: where they stand in the file, such as
    `model_state_dict`; empty for a file that is a state_dict itself."""

    place: str
    tensors: dict[str, StoredTensor]

    @property
    def is_average(self) -> bool:
        """Whether a name says that these are averaged weights."""
        return any(word in self.place for word in ("ema", "avg", "average")) or "n_averaged" in self.tensors


def find_states(content: Value) -> list[State]:
    """Every dict with tensors in it, averaged weights first. Optimizers have none under names of a network, and do not
    match any layout."""
    values = iter(range(MAX_VALUES))
    states = [State(place, strip_prefixes(tensors)) for place, tensors in walk(content, "", values)]
    return sorted(states, key=lambda state: not state.is_average)


def walk(
    value: Value, place: str, values: Iterator[int], depth: int = 0
) -> Iterator[tuple[str, dict[str, StoredTensor]]]:
    if depth > MAX_DEPTH:
        return
    if isinstance(value, Unknown) and isinstance(value.state, dict) and "_modules" in value.state:
        tensors = dict(module_tensors(value, "", values))
        if tensors:
            yield place, tensors
        return
    if not isinstance(value, dict):
        return
    named = {key: part for key, part in value.items() if is_name(key) and next(values, None) is not None}
    tensors = {key: part for key, part in named.items() if isinstance(part, StoredTensor)}
    if tensors.keys() - {BUFFER_KEY}:
        yield place, tensors
    for key, part in named.items():
        if isinstance(part, (dict, Unknown)):
            yield from walk(part, f"{place}.{key}".lstrip("."), values, depth + 1)


def is_name(key: Value) -> bool:
    """Whether it can be the name of a tensor, or of a part of a file. Others are left out."""
    return isinstance(key, str) and len(key) <= MAX_KEY and key.isprintable()


def module_tensors(module: Value, prefix: str, values: Iterator[int]) -> Iterator[tuple[str, StoredTensor]]:
    """Parameters and buffers of a pickled torch.nn.Module, named as in its state_dict."""
    state = module.state if isinstance(module, Unknown) else None
    if not isinstance(state, dict) or prefix.count(".") > 20:
        return
    for group in ("_parameters", "_buffers", "_modules"):
        parts = state.get(group)
        for key, part in parts.items() if isinstance(parts, dict) else ():
            if not is_name(key) or next(values, None) is None:
                continue
            if group == "_modules":
                yield from module_tensors(part, f"{prefix}{key}.", values)
            elif isinstance(part, StoredTensor):
                yield prefix + key, part


def strip_prefixes(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Remove the prefixes of wrappers for as long as all names begin with one of them."""
    for _ in range(MAX_PREFIXES):
        inner = [name for name in tensors if name not in OUTER_KEYS]
        prefix = next((prefix for prefix in PREFIXES if inner and all(name.startswith(prefix) for name in inner)), None)
        if prefix is None:
            return tensors
        tensors = {name if name in OUTER_KEYS else name.removeprefix(prefix): part for name, part in tensors.items()}
    return tensors


def find_buffer(content: Value) -> StoredTensor | None:
    """The replay buffer of the JEM family, (N, C, H, W)."""
    buffer = content.get(BUFFER_KEY) if isinstance(content, dict) else None
    return buffer if isinstance(buffer, StoredTensor) and len(buffer.shape) == 4 else None
