"""Flags made from the config's fields: one declaration, one flag, one YAML key; and the options that commands share
by name."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Annotated, Any

import typer

from rjem_cli.knobs import Options, accepted_types, flag_name
from rjem_cli.paths import run_names

PANELS = {
    "DeviceOptions": "Device and seed",
    "DataOptions": "Data",
    "ModelOptions": "Network",
    "AttackTrainingOptions": "Training attack",
    "EnergyOptions": "Energy and chains",
    "OptimizerOptions": "Optimisation",
    "SamplingOptions": "Sampling",
    "ChainOptions": "Chains",
    "RunOptions": "Run",
}
METAVARS = {int: "N", float: "X", str: "TEXT", tuple: "X,..."}
SHORT_FLAGS = {"count": "-n", "output": "-o"}

CheckpointArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[CHECKPOINT]",
        help="A checkpoint, a run's name or folder [the newest run].",
        show_default=False,
        autocompletion=run_names,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only the essential line.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
ConfigFile = Annotated[
    str | None, typer.Option("--config", "-c", metavar="FILE", help="YAML file with values for any of the flags.")
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print the merged values, each with its origin, and stop.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would run and what it would write, and stop.")]
EpsSpace = Annotated[
    str,
    typer.Option(
        "--eps-space",
        metavar="model|pixel",
        help="Unit of plain radii on the command line; 8/255 is always pixel units.",
    ),
]


def with_knobs(config_class: type[Options]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one flag for each field of `config_class`; what was given arrives as its argument `flags`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        names = [knob.name for knob in fields(config_class)]

        def with_flags(**values: Any) -> None:
            flags = {name: value for name in names if (value := values.pop(name)) is not None}
            command(flags=flags, **values)

        own = [
            parameter
            for name, parameter in inspect.signature(command, eval_str=True).parameters.items()
            if name != "flags"
        ]
        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        parameters = own + [flag_parameter(config_class, knob) for knob in fields(config_class)]
        with_flags.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_flags.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        with_flags.__name__, with_flags.__doc__ = command.__name__, command.__doc__
        return with_flags

    return decorate


def flag_parameter(config_class: type[Options], knob: Field[Any]) -> inspect.Parameter:
    """Values arrive as text and the config checks them, so that a flag, a variable and a YAML key give the same
    error."""
    kind = next(
        kind for kind in accepted_types(typing.get_type_hints(config_class)[knob.name]) if kind is not type(None)
    )
    choices = knob.metadata.get("choices")
    flags = [
        flag_name(knob.name),
        *([SHORT_FLAGS[knob.name]] if knob.name in SHORT_FLAGS else []),
    ]
    if kind is bool:
        flags = [f"{flags[0]}/--no-{flags[0][2:]}"]
    option = typer.Option(
        *flags,
        help=describe(knob),
        metavar=metavar(kind, choices),
        rich_help_panel=PANELS.get(owner(config_class, knob.name).__name__, "Options"),
        autocompletion=(lambda: list(choices)) if choices else None,
        show_default=False,
    )
    annotation = Annotated[(bool | None) if kind is bool else (str | None), option]  # type: ignore[valid-type]
    return inspect.Parameter(knob.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def metavar(kind: Any, choices: tuple[str, ...] | None) -> str | None:
    if kind is bool:
        return None
    return "|".join(choices) if choices and len(choices) < 4 else METAVARS[typing.get_origin(kind) or kind]


def describe(knob: Field[Any]) -> str:
    choices = knob.metadata.get("choices")
    listed = f" ({', '.join(choices)})" if choices and len(choices) >= 4 else ""
    default = (
        ""
        if knob.default is None
        else f" [{str(knob.default).lower() if isinstance(knob.default, bool) else knob.default}]"
    )
    return f"{knob.metadata['help']}{listed}.{default}"


def owner(config_class: type[Options], name: str) -> type:
    """The class in which a knob was declared; it names the help panel."""
    return next(base for base in reversed(config_class.__mro__) if name in inspect.get_annotations(base))
