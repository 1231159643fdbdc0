"""Help whose options stand under the heading of their group. Typer has that of Rich only, which takes as long to load
as all the rest of `--help`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from typer.core import TyperCommand

from rjem_cli.cli.options import shown_default
from rjem_cli.config import EMBEDDED_PRESET, TrainConfig
from rjem_cli.config.sources import command_sources, preset_for, preset_source, resolve
from rjem_cli.errors import RjemError

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
        """The default to append to an option's help, where it is not part of it."""
        return ""


class TrainCommand(SectionedCommand):
    """`rjem train`: its help shows the values that the same command line would use."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if {"-h", "--help"} & set(args):
            given, _, _ = self.make_parser(ctx).parse_args(list(args))
            ctx.meta["values"] = values_in_use(given)
        return super().parse_args(ctx, args)

    def default(self, ctx: Any, parameter: Any) -> str:
        return shown_default(ctx.meta.get("values", {}).get(parameter.name))


def values_in_use(given: dict[str, Any]) -> dict[str, Any]:
    """The values of a new run for options as they were parsed. An option that another one replaces has none; if a value
    is invalid, which the call without --help reports, the values of the preset for embedded data."""
    flags = {option.name: given[option.name] for option in fields(TrainConfig) if given.get(option.name) is not None}
    try:
        sources = command_sources(TrainConfig, flags, given.get("config_file"), given.get("eps_space", "model"))
        config = resolve(TrainConfig, [preset_for(sources)[0], *sources]).config
    except RjemError:
        config = resolve(TrainConfig, [preset_source(EMBEDDED_PRESET)]).config
    values = config.to_dict()
    for name, replacing in {"dataset": "data", "epochs": "steps"}.items():
        if values[replacing] is not None:
            values[name] = None
    return values


def section_of(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return ARGUMENTS
    return getattr(parameter, "rich_help_panel", None) or OPTIONS
