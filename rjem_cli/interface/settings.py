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
from rjem_cli.errors import ConfigError, RadiusError, did_you_mean
from rjem_cli.knobs import Options, OptionsT, flag_name, is_several, parse_epsilon, parse_epsilons
from rjem_cli.paths import expand
from rjem_cli.plain_yaml import mapping, read_mapping

ENVIRONMENT_PREFIX = "RJEM_"
OTHER_VARIABLES = {"RJEM_HOME", "RJEM_OFFLINE"}
FLAG, ENVIRONMENT = "flag", "environment"  # origins


@dataclass(frozen=True)
class Layer:
    """Values from one place. Plain radii are read in `eps_space`."""

    origin: str
    values: Mapping[str, Any]
    eps_space: str = "model"

    def called(self, key: str) -> str:
        """`--adv-eps`, `RJEM_ADV_EPS` or `my.yaml: adv_eps`."""
        if self.origin == FLAG:
            return flag_name(key)
        return variable_name(key) if self.origin == ENVIRONMENT else f"{self.origin}: {key}"


@dataclass(frozen=True)
class Settled(Generic[OptionsT]):
    """A checked config and the origin of each of its values."""

    config: OptionsT
    origins: dict[str, str]

    def to_yaml(self) -> str:
        """One line a knob with its origin as a comment; `-c` reads it back."""
        lines = []
        for name, value in self.config.to_dict().items():
            line = yaml.safe_dump({name: value}, default_flow_style=False, allow_unicode=True, width=10_000).strip()
            lines.append(f"{line:<32} # {self.origins.get(name, 'default')}")
        return "\n".join(lines) + "\n"


def merge(config_class: type[Options], layers: list[Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    """Values and their origins from all layers, the weakest first, with radii in model units but otherwise as they were
    written. Raises ConfigError for a negative radius."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    hints = typing.get_type_hints(config_class)
    radii = {knob.name for knob in fields(config_class) if knob.metadata.get("epsilon")}
    replaced = {knob.name: knob.metadata["replaces"] for knob in fields(config_class) if knob.metadata.get("replaces")}
    for layer in layers:
        for name, weaker in replaced.items():
            given = layer.values.get(name) is not None and layer.values.get(weaker) is None
            if given and values.pop(weaker, None) is not None:
                origins[weaker] = f"replaced by {flag_name(name)}"
        for key, value in layer.values.items():
            if key in radii and value is not None:
                value = in_model_units(layer, key, value, several=is_several(hints[key]))
            values[key] = value
            origins[key] = layer.origin
    return values, origins


def in_model_units(layer: Layer, key: str, value: Any, several: bool) -> Any:
    """A radius, or several, of a layer; what is none stays as it is, for the config's own check to name it."""
    try:
        radii = parse_epsilons(value, layer.eps_space)
        if min(radii) < 0:
            raise ConfigError(f"{layer.called(key)} {value} is too small; give 0 or more")
        return radii if several else parse_epsilon(value, layer.eps_space)
    except ValueError:
        return value


def settle(config_class: type[OptionsT], layers: list[Layer]) -> Settled[OptionsT]:
    """Merge layers, the weakest first, and check the result. Raises ConfigError for unknown keys and invalid values."""
    values, origins = merge(config_class, layers)
    try:
        return Settled(config_class.from_dict(values), origins)
    except ConfigError as error:
        raise reworded(error, layers) from None


def command_layers(
    config_class: type[OptionsT], flags: Mapping[str, Any], config_file: str | None, eps_space: str
) -> list[Layer]:
    """The layers of one command line, the weakest first: file, environment, flags. Reads the file, which may be a pipe,
    once. Raises AbsentError or ConfigError."""
    if eps_space not in ("model", "pixel"):
        raise ConfigError(f"--eps-space {eps_space!r} is unknown; give model or pixel")
    layers = [] if config_file is None else [file_layer(config_file)]
    return [*layers, environment_layer(config_class, eps_space), Layer(FLAG, flags, eps_space)]


def value_in(layers: list[Layer], key: str) -> Any:
    """The strongest layer's value of `key`, as written; None if no layer has it."""
    return next((layer.values[key] for layer in reversed(layers) if layer.values.get(key) is not None), None)


def reworded(error: ConfigError, layers: list[Layer]) -> ConfigError:
    """The error, naming the flag, variable or file key that the value came from, and quoting a radius as written."""
    quoted = as_written(error, layers) if isinstance(error, RadiusError) else error
    new = ConfigError(with_origin(str(quoted), layers))
    new.told = error.told
    return new


def as_written(error: RadiusError, layers: list[Layer]) -> RadiusError:
    """The error with the text of its radius in the strongest layer that has it."""
    for layer in reversed(layers):
        texts = [str(value) for key, value in layer.values.items() if flag_name(key) == error.flag]
        for part in (part.strip() for text in texts for part in text.split(",")):
            with contextlib.suppress(ValueError):
                if parse_epsilon(part, layer.eps_space) == error.eps:
                    return RadiusError(error.flag, error.eps, part)
    return error


def with_origin(message: str, layers: list[Layer]) -> str:
    """The value that the message is about, as it is called where it came from."""
    for layer in reversed(layers):
        for key in map(str, layer.values):
            if f"unknown key {key!r} " in message:
                return f"{layer.origin}: {message}"
            rest = message.removeprefix(flag_name(key))
            if rest != message and rest[:1] in (" ", ":"):
                return layer.called(key) + rest
    return message


def variable_name(knob_name: str) -> str:
    """`--adv-eps` -> `RJEM_ADV_EPS`."""
    return ENVIRONMENT_PREFIX + flag_name(knob_name)[2:].upper().replace("-", "_")


def environment_layer(config_class: type[OptionsT], eps_space: str) -> Layer:
    """RJEM_ADV_EPS and its like; RJEM_HOME and RJEM_OFFLINE are not knobs."""
    names = {variable_name(knob.name): knob.name for knob in fields(config_class)}
    return Layer(ENVIRONMENT, {names[key]: value for key, value in os.environ.items() if key in names}, eps_space)


def unknown_variables(known: Iterable[type[Options]]) -> Iterator[str]:
    """What to say of RJEM_ names that are none of these groups': a slip of the pen would else go unseen."""
    names = {variable_name(knob.name) for group in known for knob in fields(group)} | OTHER_VARIABLES
    for name in sorted(os.environ):
        if name.startswith(ENVIRONMENT_PREFIX) and name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
            yield f"no command reads {name}" + (f"; did you mean {near[0]}?" if near else "")


def file_layer(path: str) -> Layer:
    """A YAML mapping. Raises AbsentError or ConfigError with the file's name."""
    if not path:
        raise ConfigError("-c '': give a YAML file")
    return Layer(path, read_mapping(expand(path)))


def preset_names() -> list[str]:
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in resources.files("rjem_cli.presets").iterdir()
        if entry.name.endswith(".yaml")
    )


def preset_for(layers: list[Layer]) -> tuple[Layer, str]:
    """The preset that a command line names, or else the default for its data; and in words, what it is the default
    for."""
    values, _ = merge(TrainConfig, layers)
    if values.get("preset") is not None:
        try:
            return preset_layer(str(values["preset"])), ""
        except ConfigError as error:
            raise reworded(error, layers) from None
    if values.get("data") is not None:
        return preset_layer(OWN_IMAGES_PRESET), "--data"
    dataset = str(values.get("dataset", "embedded data"))
    return preset_layer(DEFAULT_PRESETS.get(dataset, EMBEDDED_PRESET)), dataset


def preset_layer(name: str) -> Layer:
    """The values of a preset, and its name. Raises ConfigError for an unknown one."""
    if name not in preset_names():
        raise ConfigError(f"--preset {name!r} is unknown; {did_you_mean(name, preset_names())}")
    text = resources.files("rjem_cli.presets").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return Layer(f"preset {name}", {"preset": name, **mapping(text, f"preset {name}")})
