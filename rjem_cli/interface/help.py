"""Help whose options stand under the heading of their group. Typer has that of Rich only, which takes as long to load
as all the rest of `--help`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from typer.core import TyperCommand

from rjem_cli.config import TrainConfig
from rjem_cli.errors import RjemError
from rjem_cli.interface.options import shown_default
from rjem_cli.interface.settings import (
    FIRST_PRESET,
    FLAG,
    Layer,
    default_preset,
    environment_layer,
    preset_layer,
    settle,
    value_in,
)

ARGUMENTS, OPTIONS = "Arguments", "Options"


class SectionedCommand(TyperCommand):
    """A command with many options; a group's heading is the option's `rich_help_panel`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                names, meaning = record
                sections.setdefault(section_of(parameter), []).append((names, meaning + self.default(ctx, parameter)))
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def default(self, ctx: Any, parameter: Any) -> str:
        """What is shown behind a meaning that does not have its default in it."""
        return ""


class TrainCommand(SectionedCommand):
    """`rjem train`, whose defaults are those of a preset: of the one that the same command line would take."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["values"] = values_in_force(args) if {"-h", "--help"} & set(args) else {}
        return super().parse_args(ctx, args)

    def default(self, ctx: Any, parameter: Any) -> str:
        return shown_default(ctx.meta["values"].get(parameter.name))


def values_in_force(arguments: list[str]) -> dict[str, Any]:
    """What `rjem train` would take with these arguments, of which those that choose a preset count. An option that
    another one sets aside has no value."""
    given = {name: value for name in ("dataset", "data") if (value := argument(arguments, name))}
    layers = [environment_layer(TrainConfig, "model"), Layer(FLAG, given)]
    preset = argument(arguments, "preset") or default_preset(value_in(layers, "dataset"), value_in(layers, "data"))
    try:
        config = settle(TrainConfig, [preset_layer(preset), *layers]).config
    except RjemError:  # which the call without --help tells
        config = settle(TrainConfig, [preset_layer(FIRST_PRESET)]).config
    values = {"preset": preset, **config.to_dict()}
    for knob in fields(TrainConfig):
        if (other := knob.metadata["replaces"]) and values[other] is not None:
            values[knob.name] = None
    return values


def argument(arguments: list[str], name: str) -> str | None:
    """`--name value` or `--name=value`."""
    for place, word in enumerate(arguments):
        if word == f"--{name}" and place + 1 < len(arguments):
            return arguments[place + 1]
        if word.startswith(f"--{name}="):
            return word.partition("=")[2]
    return None


def section_of(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return ARGUMENTS
    return getattr(parameter, "rich_help_panel", None) or OPTIONS
