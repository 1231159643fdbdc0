"""What a knob is: a dataclass field with a meaning, a default and a range, checked wherever its value came from.

A field is a flag (`adv_eps` -> `--adv-eps`), a YAML key, an environment variable (`RJEM_ADV_EPS`) and an entry of a
checkpoint's metadata. The knobs themselves are in config.py.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from rjem_cli.errors import ConfigError, did_you_mean

PIXEL_PER_MODEL_UNIT = 0.5  # model units span [-1, 1], pixel units [0, 1]


def option(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] | None = None,
    epsilon: bool = False,
    replaces: str | None = None,
) -> Any:
    """One declaration of one knob. `minimum` and `maximum` are inclusive, `above` is not; `epsilon` marks a radius such
    as 8/255; `replaces` names a knob of a weaker layer that this one, once given, sets aside."""
    limits = {"minimum": minimum, "above": above, "maximum": maximum, "choices": choices}
    return field(default=default, metadata={"help": help, "epsilon": epsilon, "replaces": replaces, **limits})


def flag_name(field_name: str) -> str:
    """`adv_eps` -> `--adv-eps`; `class` is no name for a field."""
    if field_name == "classes":
        return "--class"
    return "--" + field_name.replace("_", "-")


def parse_epsilon(value: float | str, space: str) -> float:
    """A radius in model units ([-1, 1]).

    `8/255` always means pixel units, as in RobustBench; a plain number is in `space`, "model" or "pixel".
    Raises ValueError for anything else.
    """
    text = str(value).strip()
    if "/" in text:
        numerator, denominator = text.split("/", 1)
        if float(denominator) == 0:
            raise ValueError("division by zero")
        return float(numerator) / float(denominator) / PIXEL_PER_MODEL_UNIT
    return float(text) / PIXEL_PER_MODEL_UNIT if space == "pixel" else float(text)


def parse_epsilons(value: Any, space: str) -> tuple[float, ...]:
    """Several radii in model units: `2/255,4/255`, a list of such, or one. Raises ValueError."""
    parts = value if isinstance(value, (list, tuple)) else str(value).split(",")
    return tuple(parse_epsilon(part, space) for part in parts)


def format_epsilon(model_units: float, norm: str) -> str:
    """Both units, always, as the field writes them: linf `0.1 = 12.75/255`, l2 `1 = 0.5 in [0, 1]`."""
    pixel_units = model_units * PIXEL_PER_MODEL_UNIT
    return f"{model_units:g} = " + (f"{pixel_units * 255:g}/255" if norm == "linf" else f"{pixel_units:g} in [0, 1]")


def format_short_epsilon(model_units: float, norm: str) -> str:
    """As the field calls it: `8/255` where it is a whole number of grey levels, else `0.1` in model units."""
    levels = round(model_units * PIXEL_PER_MODEL_UNIT * 255, 9)
    return f"{levels:g}/255" if norm == "linf" and levels.is_integer() and levels else f"{model_units:g}"


@dataclass(frozen=True, kw_only=True)
class Config:
    """What all groups of knobs share: checks at construction, conversion from and to plain data."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for option_field in fields(self):
            value = getattr(self, option_field.name)
            if option_field.metadata.get("epsilon") and value is not None:
                value = coerce_epsilon(option_field.name, value, several=is_several(hints[option_field.name]))
            else:
                value = coerce(option_field.name, value, hints[option_field.name])
            object.__setattr__(self, option_field.name, value)
            for single in value if isinstance(value, tuple) else (value,):
                check_limits(option_field.name, single, option_field.metadata)

    @classmethod
    def from_dict(cls: type[ConfigT], values: dict[str, Any], source: str = "the config") -> ConfigT:
        """Build from plain data; an unknown key raises ConfigError that names the nearest known one."""
        known = {option_field.name for option_field in fields(cls)}
        for key in values:
            if key not in known:
                raise ConfigError(f"unknown key {key!r} in {source}; {did_you_mean(str(key), sorted(known))}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


ConfigT = TypeVar("ConfigT", bound=Config)


def given_flags(options: Config) -> Iterator[str]:
    """The words of a command line that sets what is not at its default."""
    for option_field in fields(options):
        value, flag = getattr(options, option_field.name), flag_name(option_field.name)
        if value == option_field.default:
            continue
        if isinstance(value, bool):
            yield flag if value else f"--no-{flag[2:]}"
        else:
            yield from (flag, ",".join(map(str, value)) if isinstance(value, tuple) else str(value))


def accepted_types(hint: Any) -> tuple[type, ...]:
    """The plain types of an annotation: `int | None` gives (int, NoneType)."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return typing.get_args(hint)
    return (hint,)


def is_several(hint: Any) -> bool:
    """Whether a field takes a list: `tuple[float, ...] | None`."""
    return any(typing.get_origin(kind) is tuple for kind in accepted_types(hint))


def coerce(name: str, value: Any, hint: Any) -> Any:
    """Turn text and ints into the declared type. YAML reads `1e-3` as text; this is where it becomes a number."""
    accepted = accepted_types(hint)
    if value is None and type(None) in accepted:
        return None
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ConfigError(f"{flag_name(name)}: the number has {value.bit_length()} bits; give a smaller one")
    if isinstance(value, str) and "\0" in value:
        raise ConfigError(f"{flag_name(name)} {value!r}: give text without a null character")
    target = next(kind for kind in accepted if kind is not type(None))
    try:
        if target is bool:
            if isinstance(value, bool):
                return value
            return {
                "true": True,
                "yes": True,
                "on": True,
                "1": True,
                "false": False,
                "no": False,
                "off": False,
                "0": False,
            }[str(value).strip().lower()]
        if isinstance(value, bool):
            raise ValueError
        if target is int:
            number = float(value)
            if number != int(number):
                raise ValueError
            return (
                int(value)
                if isinstance(value, (int, str)) and str(value).strip().lstrip("+-").isdigit()
                else int(number)
            )
        if target is str and (not isinstance(value, (str, int, float)) or value == ""):
            raise ValueError
        return target(value)
    except (ValueError, TypeError, KeyError, OverflowError):
        wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[target]
        raise ConfigError(f"{flag_name(name)} {'null' if value is None else repr(value)}: give {wanted}") from None


def coerce_epsilon(name: str, value: Any, several: bool) -> float | tuple[float, ...]:
    """Plain numbers in a config are model units."""
    try:
        return parse_epsilons(value, "model") if several else parse_epsilon(value, "model")
    except ValueError:
        more = ", or several with commas" if several else ""
        raise ConfigError(
            f"{flag_name(name)} {value!r}: give a number such as 0.1, or pixel units such as 8/255{more}"
        ) from None


def exact(value: float) -> str:
    """Whole numbers with all their digits, so that no bound looks like what it excludes."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def check_limits(name: str, value: Any, limits: typing.Mapping[str, Any]) -> None:
    """Raise ConfigError unless `value` is finite and inside its declared range or choices."""
    if value is None:
        return
    flag = flag_name(name)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{flag} {value}: give a finite number")
    if limits.get("choices") and value not in limits["choices"]:
        raise ConfigError(f"{flag} {value!r} is unknown; {did_you_mean(str(value), limits['choices'])}")
    if limits.get("minimum") is not None and value < limits["minimum"]:
        raise ConfigError(f"{flag} {exact(value)} is too small; give {limits['minimum']} or more")
    if limits.get("above") is not None and value <= limits["above"]:
        raise ConfigError(f"{flag} {value:g} is too small; give more than {limits['above']:g}")
    if limits.get("maximum") is not None and value > limits["maximum"]:
        raise ConfigError(f"{flag} {exact(value)} is too large; give {limits['maximum']} or less")
