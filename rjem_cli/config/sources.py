"""Where each value comes from: flag > environment > YAML file > preset (or the run being resumed) > default."""

from __future__ import annotations

import contextlib
import difflib
import os
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from importlib import resources
from typing import Any, Generic

import yaml

from rjem_cli.config import DEFAULT_PRESETS, EMBEDDED_PRESET, OWN_IMAGES_PRESET, TrainConfig
from rjem_cli.config.fields import Config, ConfigT, flag_name, is_several, parse_epsilon, parse_epsilons
from rjem_cli.config.yaml_files import mapping, read_mapping
from rjem_cli.errors import ConfigError, RadiusError, did_you_mean
from rjem_cli.paths import expand

ENVIRONMENT_PREFIX = "RJEM_"
OTHER_VARIABLES = {"RJEM_HOME", "RJEM_CACHE", "RJEM_OFFLINE"}
FLAG, ENVIRONMENT = "flag", "environment"  # origins


@dataclass(frozen=True)
class ConfigSource:
    """Values from one place. Plain radii are read in `eps_space`."""

    origin: str
    values: Mapping[str, Any]
    eps_space: str = "model"

    def name_of_option(self, key: str) -> str:
        """`--adv-eps`, `RJEM_ADV_EPS` or `my.yaml: adv_eps`."""
        if self.origin == FLAG:
            return flag_name(key)
        return variable_name(key) if self.origin == ENVIRONMENT else f"{self.origin}: {key}"


@dataclass(frozen=True)
class ResolvedConfig(Generic[ConfigT]):
    """A checked config and the origin of each of its values."""

    config: ConfigT
    origins: dict[str, str]

    def to_yaml(self) -> str:
        """One line a knob with its origin as a comment; `-c` reads it back."""
        lines = []
        for name, value in self.config.to_dict().items():
            line = yaml.safe_dump({name: value}, default_flow_style=False, allow_unicode=True, width=10_000).strip()
            lines.append(f"{line:<32} # {self.origins.get(name, 'default')}")
        return "\n".join(lines) + "\n"


def merge(config_class: type[Config], sources: list[ConfigSource]) -> tuple[dict[str, Any], dict[str, str]]:
    """Values and their origins from all layers, the weakest first, with radii in model units but otherwise as they were
    written. Raises ConfigError for a negative radius."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    hints = typing.get_type_hints(config_class)
    radii = {option.name for option in fields(config_class) if option.metadata.get("epsilon")}
    replaced = {
        option.name: option.metadata["replaces"] for option in fields(config_class) if option.metadata.get("replaces")
    }
    for source in sources:
        for name, weaker in replaced.items():
            given = source.values.get(name) is not None and source.values.get(weaker) is None
            if given and values.pop(weaker, None) is not None:
                origins[weaker] = f"replaced by {flag_name(name)}"
        for key, value in source.values.items():
            if key in radii and value is not None:
                value = parse_radius(source, key, value, several=is_several(hints[key]))
            values[key] = value
            origins[key] = source.origin
    return values, origins


def parse_radius(source: ConfigSource, key: str, value: Any, several: bool) -> Any:
    """A radius, or several, of a layer; what is none stays as it is, for the config's own check to name it."""
    try:
        radii = parse_epsilons(value, source.eps_space)
        if min(radii) < 0:
            raise ConfigError(f"{source.name_of_option(key)} {value} is too small; give 0 or more")
        return radii if several else parse_epsilon(value, source.eps_space)
    except ValueError:
        return value


def resolve(config_class: type[ConfigT], sources: list[ConfigSource]) -> ResolvedConfig[ConfigT]:
    """Merge layers, the weakest first, and check the result. Raises ConfigError for unknown keys and invalid values."""
    values, origins = merge(config_class, sources)
    try:
        return ResolvedConfig(config_class.from_dict(values), origins)
    except ConfigError as error:
        raise reworded(error, sources) from None


def command_sources(
    config_class: type[ConfigT], flags: Mapping[str, Any], config_file: str | None, eps_space: str
) -> list[ConfigSource]:
    """The layers of one command line, the weakest first: file, environment, flags. Reads the file, which may be a pipe,
    once. Raises AbsentError or ConfigError."""
    if eps_space not in ("model", "pixel"):
        raise ConfigError(f"--eps-space {eps_space!r} is unknown; give model or pixel")
    sources = [] if config_file is None else [file_source(config_file)]
    return [*sources, environment_source(config_class, eps_space), ConfigSource(FLAG, flags, eps_space)]


def strongest_value(sources: list[ConfigSource], key: str) -> Any:
    """The strongest layer's value of `key`, as written; None if no layer has it."""
    return next((source.values[key] for source in reversed(sources) if source.values.get(key) is not None), None)


def reworded(error: ConfigError, sources: list[ConfigSource]) -> ConfigError:
    """The error, naming the flag, variable or file key that the value came from, and quoting a radius as written."""
    quoted = quote_radius(error, sources) if isinstance(error, RadiusError) else error
    new = ConfigError(name_source(str(quoted), sources))
    return new


def quote_radius(error: RadiusError, sources: list[ConfigSource]) -> RadiusError:
    """The error with the text of its radius in the strongest layer that has it."""
    for source in reversed(sources):
        texts = [str(value) for key, value in source.values.items() if flag_name(key) == error.flag]
        for part in (part.strip() for text in texts for part in text.split(",")):
            with contextlib.suppress(ValueError):
                if parse_epsilon(part, source.eps_space) == error.eps:
                    return RadiusError(error.flag, error.eps, part)
    return error


def name_source(message: str, sources: list[ConfigSource]) -> str:
    """The value that the message is about, as it is called where it came from."""
    for source in reversed(sources):
        for key in map(str, source.values):
            if f"unknown key {key!r} " in message:
                return f"{source.origin}: {message}"
            rest = message.removeprefix(flag_name(key))
            if rest != message and rest[:1] in (" ", ":"):
                return source.name_of_option(key) + rest
    return message


def variable_name(knob_name: str) -> str:
    """`--adv-eps` -> `RJEM_ADV_EPS`."""
    return ENVIRONMENT_PREFIX + flag_name(knob_name)[2:].upper().replace("-", "_")


def environment_source(config_class: type[ConfigT], eps_space: str) -> ConfigSource:
    """RJEM_ADV_EPS and its like; RJEM_HOME and RJEM_OFFLINE are not knobs."""
    names = {variable_name(option.name): option.name for option in fields(config_class)}
    return ConfigSource(
        ENVIRONMENT, {names[key]: value for key, value in os.environ.items() if key in names}, eps_space
    )


def unknown_variables(known: Iterable[type[Config]]) -> Iterator[str]:
    """What to say of RJEM_ names that are none of these groups': a slip of the pen would else go unseen."""
    names = {variable_name(option.name) for group in known for option in fields(group)} | OTHER_VARIABLES
    for name in sorted(os.environ):
        if name.startswith(ENVIRONMENT_PREFIX) and name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
            yield f"no command reads {name}" + (f"; did you mean {near[0]}?" if near else "")


def file_source(path: str) -> ConfigSource:
    """A YAML mapping. Raises AbsentError or ConfigError with the file's name."""
    if not path:
        raise ConfigError("-c '': give a YAML file")
    return ConfigSource(path, read_mapping(expand(path)))


def preset_names() -> list[str]:
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in resources.files("rjem_cli.config.presets").iterdir()
        if entry.name.endswith(".yaml")
    )


def preset_for(sources: list[ConfigSource]) -> tuple[ConfigSource, str]:
    """The preset that a command line names, or else the default for its data; and in words, what it is the default
    for."""
    values, _ = merge(TrainConfig, sources)
    if values.get("preset") is not None:
        try:
            return preset_source(str(values["preset"])), ""
        except ConfigError as error:
            raise reworded(error, sources) from None
    if values.get("data") is not None:
        return preset_source(OWN_IMAGES_PRESET), "--data"
    dataset = str(values.get("dataset", "embedded data"))
    return preset_source(DEFAULT_PRESETS.get(dataset, EMBEDDED_PRESET)), dataset


def preset_source(name: str) -> ConfigSource:
    """The values of a preset, and its name. Raises ConfigError for an unknown one."""
    if name not in preset_names():
        raise ConfigError(f"--preset {name!r} is unknown; {did_you_mean(name, preset_names())}")
    text = resources.files("rjem_cli.config.presets").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return ConfigSource(f"preset {name}", {"preset": name, **mapping(text, f"preset {name}")})
