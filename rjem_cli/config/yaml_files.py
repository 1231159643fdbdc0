"""YAML files with keys and plain values: presets, config files, and the config of a run."""

from pathlib import Path
from typing import Any

import yaml

from rjem_cli.errors import AbsentError, ConfigError

NULL = "tag:yaml.org,2002:null"
LARGEST = 2**16  # bytes, some twenty times the size of a full config


class PlainLoader(yaml.SafeLoader):
    """Loads every value as the text that was written, except null: the option's type gives it its meaning. YAML 1.1
    would read `1e-3` as text, `no` as false, `010` as eight and `1:30` as ninety."""


PlainLoader.yaml_implicit_resolvers = {
    first: nulls
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (nulls := [(tag, pattern) for tag, pattern in resolvers if tag == NULL])
}


def read_mapping(path: Path) -> dict[str, Any]:
    """Raises AbsentError for no file, ConfigError for one without keys and values."""
    try:
        with path.open("rb") as file:  # also a pipe, `-c <(...)`
            content = file.read(LARGEST + 1)
        text = content.decode()
    except FileNotFoundError:
        raise AbsentError(f"config file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read as text ({error})") from None
    if len(content) > LARGEST:
        raise ConfigError(f"config file {path} has more than {LARGEST} bytes; give one with keys and values")
    return mapping(text, str(path))


def mapping(text: str, source: str) -> dict[str, Any]:
    """Parse keys and values. Raises ConfigError, with the source's name, for anything else."""
    try:
        check_plain(yaml.compose(text, PlainLoader), source)
        values: dict[str, Any] = yaml.load(text, PlainLoader) or {}
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{source} is not valid YAML ({reason})") from None
    return values


def check_plain(node: yaml.Node | None, source: str) -> None:
    """Raises ConfigError unless each key has a plain value or a list of them. Nested values could grow without limit by
    aliases and merges once they are built."""
    if node is None or (isinstance(node, yaml.ScalarNode) and node.tag == NULL):
        return
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{source} must hold keys and values, such as adv_eps: 0.1")
    seen: set[str] = set()
    for key, value in node.value:
        name = str(key.value) if isinstance(key, yaml.ScalarNode) else "a key"
        if name in seen:
            raise ConfigError(f"{source}: key {name} is given twice; remove one")
        seen.add(name)
        parts = (key, *(value.value if isinstance(value, yaml.SequenceNode) else (value,)))
        if not all(isinstance(part, yaml.ScalarNode) for part in parts):
            raise ConfigError(f"{source}: {name} must be a plain value")
