"""YAML as keys with plain values: presets, config files, and the config that a run keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from rjem_cli.errors import AbsentError, ConfigError

NULL = "tag:yaml.org,2002:null"
LARGEST = 2**16  # bytes, some twenty times what all knobs with their origins need


class PlainLoader(yaml.SafeLoader):
    """Values stay the text that was written, but for null: what it means, the knob's declared type says. YAML 1.1 would
    read `1e-3` as text, `no` as false, `010` as eight and `1:30` as ninety."""


PlainLoader.yaml_implicit_resolvers = {
    first: kept
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (kept := [(tag, pattern) for tag, pattern in resolvers if tag == NULL])
}


def read_mapping(path: Path) -> dict[str, Any]:
    """Raises AbsentError for no file, ConfigError, with its name, for one that is not keys and values."""
    try:
        with path.open("rb") as file:  # a pipe too, `-c <(...)`
            content = file.read(LARGEST + 1)
        text = content.decode()
    except FileNotFoundError:
        raise AbsentError(f"config file {path} is not there") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read as text ({error})") from None
    if len(content) > LARGEST:
        raise ConfigError(f"config file {path} has more than {LARGEST} bytes; give one with keys and values")
    return mapping(text, str(path))


def mapping(text: str, source: str) -> dict[str, Any]:
    """Keys and values. Raises ConfigError, with the source's name, for anything else."""
    try:
        check_plain(yaml.compose(text, PlainLoader), source)
        values: dict[str, Any] = yaml.load(text, PlainLoader) or {}
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{source} is not YAML ({reason})") from None
    return values


def check_plain(node: yaml.Node | None, source: str) -> None:
    """Keys, each with a value or a list of values: what nests can grow without end by aliases and merges, once it is
    built. Raises ConfigError."""
    if node is None or (isinstance(node, yaml.ScalarNode) and node.tag == NULL):
        return
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{source} must hold keys and values, such as adv_eps: 0.1")
    seen: set[str] = set()
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value in seen:
            raise ConfigError(f"{source}: {key.value} is there twice; leave one")
        seen.add(str(key.value))
        parts = (key, *(value.value if isinstance(value, yaml.SequenceNode) else (value,)))
        if not all(isinstance(part, yaml.ScalarNode) for part in parts):
            name = key.value if isinstance(key, yaml.ScalarNode) else "a key"
            raise ConfigError(f"{source}: {name} must be a plain value")
