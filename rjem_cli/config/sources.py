"""Where each value comes from: flag > environment > YAML file > preset (or the resumed run) > default.

YAML files hold keys and plain values.
"""

import contextlib
import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Generic

import yaml

from rjem_cli.config.common import DEFAULT_PRESETS, EMBEDDED_PRESET, OWN_IMAGES_PRESET
from rjem_cli.config.fields import Config, ConfigT, check_keys, flag_name, options, parse_epsilon, split_list
from rjem_cli.config.training import TrainConfig
from rjem_cli.errors import AbsentError, ConfigError, OptionError, did_you_mean
from rjem_cli.paths import expand

NULL = "tag:yaml.org,2002:null"
MAX_CONFIG_BYTES = 2**16  # some twenty times the size of a full config
ENVIRONMENT_PREFIX = "RJEM_"
OTHER_VARIABLES = {"RJEM_HOME", "RJEM_CACHE", "RJEM_OFFLINE"}
FLAG, ENVIRONMENT = "flag", "environment"  # origins


class PlainLoader(yaml.SafeLoader):
    """Loads every value as the text that was written, except null: the option's type gives it its meaning. YAML 1.1
    would read `1e-3` as text, `no` as false, `010` as eight and `1:30` as ninety."""


PlainLoader.yaml_implicit_resolvers = {
    first: nulls
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (nulls := [(tag, pattern) for tag, pattern in resolvers if tag == NULL])
}


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file of keys and values. Raises AbsentError if it is missing, ConfigError if it is invalid."""
    try:
        with path.open("rb") as file:  # also a pipe, `-c <(...)`
            content = file.read(MAX_CONFIG_BYTES + 1)
        text = content.decode()
    except FileNotFoundError:
        raise AbsentError(f"config file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read as text ({error})") from None
    if len(content) > MAX_CONFIG_BYTES:
        raise ConfigError(f"config file {path} has more than {MAX_CONFIG_BYTES} bytes; give one with keys and values")
    return parse_mapping(text, str(path))


def parse_mapping(text: str, source: str) -> dict[str, Any]:
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


@dataclass(frozen=True)
class ConfigSource:
    """Values from one place, as written. Plain radii are in `eps_space`, "model" or "pixel"."""

    origin: str
    values: Mapping[str, Any]
    eps_space: str = "model"

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def label(self, name: str) -> str:
        """`--adv-eps`, `RJEM_ADV_EPS` or `my.yaml: adv_eps`."""
        if self.origin == FLAG:
            return flag_name(name)
        return variable_name(name) if self.origin == ENVIRONMENT else f"{self.origin}: {name}"


@dataclass(frozen=True)
class ResolvedConfig(Generic[ConfigT]):
    """A checked config and the origin of each of its values."""

    config: ConfigT
    origins: dict[str, str]

    def to_yaml(self) -> str:
        """One line per option with its origin as a comment; `-c` reads it back."""
        lines = []
        for name, value in self.config.to_dict().items():
            line = yaml.safe_dump({name: value}, default_flow_style=False, allow_unicode=True, width=10_000).strip()
            lines.append(f"{line:<32} # {self.origins.get(name, 'default')}")
        return "\n".join(lines) + "\n"


def resolve(config_class: type[ConfigT], sources: list[ConfigSource]) -> ResolvedConfig[ConfigT]:
    """Merge sources, the weakest first, and check the result. Raises ConfigError."""
    winners, replaced = merge(config_class, sources)
    values = {name: source.values[name] for name, source in winners.items()}
    try:
        for option in options(config_class):
            if option.epsilon and option.name in winners:
                values[option.name] = option.parse(values[option.name], winners[option.name].eps_space)
        config = config_class.from_dict(values)
    except OptionError as error:
        raise locate(error, sources) from None
    return ResolvedConfig(config, {**replaced, **{name: source.origin for name, source in winners.items()}})


def merge(config_class: type[Config], sources: list[ConfigSource]) -> tuple[dict[str, ConfigSource], dict[str, str]]:
    """The strongest source of each value, and a note for each option whose value another option replaced. Raises
    ConfigError for unknown keys, and for two flags that replace each other."""
    winners: dict[str, ConfigSource] = {}
    replaced: dict[str, str] = {}
    for source in sources:
        check_keys(config_class, source.values, source.origin)
        for option in options(config_class):
            if option.replaces is None or not source.has(option.name):
                continue
            if source.origin == FLAG and source.has(option.replaces):
                raise ConfigError(f"{option.flag} and {flag_name(option.replaces)} exclude each other; give one")
            weaker = None if source.has(option.replaces) else winners.pop(option.replaces, None)
            if weaker is not None and weaker.has(option.replaces):
                replaced[option.replaces] = f"replaced by {option.flag}"
        winners |= dict.fromkeys(source.values, source)
    return winners, replaced


def locate(error: OptionError, sources: list[ConfigSource]) -> OptionError:
    """The error with the flag, variable or file key that the value came from, and with a number as it was written."""
    for source in reversed(sources):
        for name in source.values:
            if flag_name(name) != error.flag:
                continue
            for part in split_list(source.values[name]):
                with contextlib.suppress(ValueError):
                    if parse_epsilon(part, source.eps_space) == error.value:
                        return OptionError(source.label(name), error.value, error.problem, str(part).strip())
            return OptionError(source.label(name), error.value, error.problem, error.text)
    return error


def command_sources(
    config_class: type[ConfigT], flags: Mapping[str, Any], config_file: str | None, eps_space: str
) -> list[ConfigSource]:
    """The sources of one command line, the weakest first: file, environment, flags. Reads the file once: it may be a
    pipe. Raises AbsentError or ConfigError."""
    if eps_space not in ("model", "pixel"):
        raise ConfigError(f"--eps-space {eps_space!r} is unknown; give model or pixel")
    if config_file == "":
        raise ConfigError("-c '': give a YAML file")
    file = [] if config_file is None else [file_source(config_file)]
    return [*file, environment_source(config_class, eps_space), ConfigSource(FLAG, flags, eps_space)]


def strongest_value(sources: list[ConfigSource], name: str) -> Any:
    """The strongest source's value, as written; None if no source has one."""
    return next((source.values[name] for source in reversed(sources) if source.has(name)), None)


def file_source(path: str) -> ConfigSource:
    """The values of a YAML file. Raises AbsentError or ConfigError with the file's name."""
    return ConfigSource(path, read_mapping(expand(path)))


def variable_name(option_name: str) -> str:
    """`adv_eps` -> `RJEM_ADV_EPS`."""
    return ENVIRONMENT_PREFIX + flag_name(option_name)[2:].upper().replace("-", "_")


def environment_source(config_class: type[ConfigT], eps_space: str) -> ConfigSource:
    """The values of RJEM_ADV_EPS and the like. An empty variable counts as unset."""
    variables = {option.name: os.environ.get(variable_name(option.name)) for option in options(config_class)}
    return ConfigSource(ENVIRONMENT, {name: value for name, value in variables.items() if value}, eps_space)


def unknown_variables(config_classes: Iterable[type[Config]]) -> Iterator[str]:
    """A warning for each RJEM_ variable that no command reads."""
    known = {variable_name(option.name) for group in config_classes for option in options(group)} | OTHER_VARIABLES
    for name in sorted(os.environ):
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            yield f"no command reads {name}" + (f"; did you mean {near[0]}?" if near else "")


def preset_names() -> list[str]:
    presets = resources.files("rjem_cli.config.presets").iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in presets if entry.name.endswith(".yaml"))


def preset_source(name: str) -> ConfigSource:
    """The values of a preset, with its name. Raises OptionError for an unknown one."""
    if name not in preset_names():
        raise OptionError("--preset", name, f" is unknown; {did_you_mean(name, preset_names())}")
    text = resources.files("rjem_cli.config.presets").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return ConfigSource(f"preset {name}", {"preset": name, **parse_mapping(text, f"preset {name}")})


def preset_for(sources: list[ConfigSource]) -> tuple[ConfigSource, str]:
    """The preset that the sources name, with ""; else the default preset for their data, with the name of that data.
    Raises ConfigError."""
    winners, _ = merge(TrainConfig, sources)
    preset, data, dataset = (
        winners[name].values[name] if name in winners else None for name in ("preset", "data", "dataset")
    )
    if preset is not None:
        try:
            return preset_source(str(preset)), ""
        except OptionError as error:
            raise locate(error, sources) from None
    if data is not None:
        return preset_source(OWN_IMAGES_PRESET), "--data"
    return preset_source(DEFAULT_PRESETS.get(str(dataset), EMBEDDED_PRESET)), str(dataset or "built-in digits")
