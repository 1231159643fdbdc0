"""Options: dataclass fields with a help text, a default and a range, checked wherever their value came from.

The field `adv_eps` is a flag (`--adv-eps`), an environment variable (`RJEM_ADV_EPS`), a YAML key (`adv_eps`) and an
entry of a checkpoint's metadata. Pydantic could check them too, but takes 0.15 s to import, half of `rjem --help`.
"""

import contextlib
import functools
import inspect
import math
import os
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self, TypeVar

from rjem_cli.errors import ConfigError, OptionError, did_you_mean

PIXEL_PER_MODEL_UNIT = 0.5  # model units span [-1, 1], pixel units [0, 1]
BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def option(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    choices: tuple[str, ...] | None = None,
    epsilon: bool = False,
    replaces: str | None = None,
) -> Any:
    """Declare an option. Its value is at least `ge`, greater than `gt` and at most `le`. `epsilon` marks a radius such
    as 8/255. `replaces` names an option whose value from a weaker source is dropped once this one is given."""
    return field(default=default, metadata={name: value for name, value in locals().items() if name != "default"})


def parse_epsilon(value: float | str, space: str) -> float:
    """A radius in model units ([-1, 1]). `8/255` is always in pixel units, as in RobustBench; a plain number is in
    `space`, "model" or "pixel". Raises ValueError."""
    numerator, slash, denominator = str(value).strip().partition("/")
    if slash and float(denominator) == 0:
        raise ValueError("division by zero")
    radius = float(numerator) / float(denominator or 1)
    return (radius / PIXEL_PER_MODEL_UNIT if slash or space == "pixel" else radius) + 0.0  # no negative zero


def format_epsilon(model_units: float, norm: str) -> str:
    """A radius in both units: linf `0.1 = 12.75/255`, l2 `1 = 0.5 in [0, 1]`."""
    pixel_units = model_units * PIXEL_PER_MODEL_UNIT
    return f"{model_units:g} = " + (f"{pixel_units * 255:g}/255" if norm == "linf" else f"{pixel_units:g} in [0, 1]")


def format_short_epsilon(model_units: float, norm: str) -> str:
    """A radius as papers write it: `8/255` if it is a whole number of grey levels, else `0.1` in model units."""
    levels = round(model_units * PIXEL_PER_MODEL_UNIT * 255, 9)
    return f"{levels:g}/255" if norm == "linf" and levels.is_integer() and levels else f"{model_units:g}"


def parse_bool(value: Any) -> bool:
    return BOOLEANS[str(value).strip().lower()]


def parse_int(value: Any) -> int:
    """Also `1e3`. Raises ValueError for a fraction, and for 2**63 or more, which no library takes."""
    number = float(value)
    if not number.is_integer() or abs(number) >= 2**63:
        raise ValueError
    with contextlib.suppress(ValueError):
        return int(value)  # exact, where a float is not
    return int(number)


def parse_text(value: Any) -> str:
    if not isinstance(value, (str, int, float, os.PathLike)) or value == "" or "\0" in str(value):
        raise ValueError
    return str(value)


PARSERS: dict[type, tuple[Callable[[Any], Any], str]] = {  # a type, its parser, and what to give
    bool: (parse_bool, "true or false"),
    int: (parse_int, "a whole number"),
    float: (float, "a number"),
    str: (parse_text, "text"),
}


@dataclass(frozen=True)
class Option:
    """One field of a config class. `kind` is bool, int, float or str, for lists that of an entry; `group` is the name
    of the class that declares it; the fields from `help` on are the arguments of `option`."""

    name: str
    default: Any
    kind: type
    nullable: bool
    is_list: bool
    group: str
    help: str
    ge: float | None
    gt: float | None
    le: float | None
    choices: tuple[str, ...] | None
    epsilon: bool
    replaces: str | None

    @property
    def flag(self) -> str:
        return flag_name(self.name)

    def parse(self, value: Any, eps_space: str = "model") -> Any:
        """Text, a number or a list in the declared type. Raises OptionError."""
        if value is None and self.nullable:
            return None
        if not self.is_list:
            return self.parse_one(value, eps_space)
        parts = split_list(value)
        if not parts or "" in parts:
            raise OptionError(self.flag, value, f": give {self.wanted}")
        return tuple(self.parse_one(part, eps_space) for part in parts)

    def parse_one(self, value: Any, eps_space: str) -> Any:
        parse = functools.partial(parse_epsilon, space=eps_space) if self.epsilon else PARSERS[self.kind][0]
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ConfigError(f"{self.flag}: the number has {value.bit_length()} bits; give a smaller one")
        try:
            if isinstance(value, bool) and self.kind is not bool:
                raise ValueError
            parsed = parse(value)
        except (ValueError, TypeError, KeyError, OverflowError):
            hint = ", or remove it" if value is None else ""
            raise OptionError(self.flag, value, f": give {self.wanted}{hint}") from None
        if problem := self.find_problem(parsed):
            raise OptionError(self.flag, parsed, problem)
        return parsed

    @property
    def wanted(self) -> str:
        """What to give instead of a value of the wrong type."""
        if self.epsilon:
            return "a number such as 0.1, or pixel units such as 8/255" + ", or several with commas" * self.is_list
        return f"one of {', '.join(self.choices)}" if self.choices else PARSERS[self.kind][1]

    def find_problem(self, value: Any) -> str | None:
        """Why a value of the right type is invalid."""
        if isinstance(value, float) and not math.isfinite(value):
            return ": give a finite number"
        if self.choices and value not in self.choices:
            return f" is unknown; {did_you_mean(value, self.choices)}"
        if self.ge is not None and value < self.ge:
            return f" is too small; give {self.ge} or more"
        if self.gt is not None and value <= self.gt:
            return f" is too small; give more than {self.gt:g}"
        if self.le is not None and value > self.le:
            return f" is too large; give {self.le} or less"
        return None


def flag_name(option_name: str) -> str:
    """`adv_eps` -> `--adv-eps`; `class` is a keyword of Python, so that field is named `classes`."""
    return "--class" if option_name == "classes" else "--" + option_name.replace("_", "-")


def split_list(value: Any) -> list[Any]:
    """The parts of `2/255,4/255` or of a list."""
    return list(value) if isinstance(value, (list, tuple)) else str(value).split(",")


OPTIONS: dict[type, tuple[Option, ...]] = {}  # a cache


def options(config_class: type["Config"]) -> tuple[Option, ...]:
    """The options of a config class, in the order of its fields."""
    if config_class not in OPTIONS:
        OPTIONS[config_class] = tuple(read_options(config_class))
    return OPTIONS[config_class]


def read_options(config_class: type["Config"]) -> Iterator[Option]:
    hints = typing.get_type_hints(config_class)
    groups: dict[str, str] = {}
    for base in reversed(config_class.__mro__):
        groups = {**dict.fromkeys(inspect.get_annotations(base), base.__name__), **groups}
    for each in fields(config_class):
        kind, nullable = hints[each.name], type(None) in typing.get_args(hints[each.name])
        if nullable:  # X | None
            kind = next(part for part in typing.get_args(kind) if part is not type(None))
        if is_list := typing.get_origin(kind) is tuple:  # tuple[X, ...]
            kind = typing.get_args(kind)[0]
        yield Option(each.name, each.default, kind, nullable, is_list, groups[each.name], **each.metadata)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all groups of options. Values are parsed and checked at construction, which raises ConfigError."""

    def __post_init__(self) -> None:
        for option in options(type(self)):
            object.__setattr__(self, option.name, option.parse(getattr(self, option.name)))

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "the config") -> Self:
        """Build from plain data. Raises ConfigError for an unknown key or an invalid value."""
        check_keys(cls, values, source)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def differs(self, name: str) -> bool:
        """Whether an option has another value than its default."""
        return bool(getattr(self, name) != getattr(type(self), name))


ConfigT = TypeVar("ConfigT", bound=Config)


def check_keys(config_class: type[Config], values: Iterable[str], source: str) -> None:
    """Raises ConfigError for a key that is no option, with the nearest name."""
    known = sorted(option.name for option in options(config_class))
    for key in values:
        if key not in known:
            raise ConfigError(f"unknown key {key!r} in {source}; {did_you_mean(str(key), known)}")


def given_flags(config: Config) -> Iterator[str]:
    """The words of a command line that gives this config."""
    for option in options(type(config)):
        value = getattr(config, option.name)
        if value == option.default:
            continue
        if isinstance(value, bool):
            yield option.flag if value else f"--no-{option.flag[2:]}"
        else:
            yield from (option.flag, ",".join(map(str, value)) if isinstance(value, tuple) else str(value))
