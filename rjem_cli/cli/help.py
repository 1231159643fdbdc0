"""Help pages whose options stand in sections. Typer has sections only with Rich, which doubles the time of a help."""

from typing import Any

import typer
from typer.core import TyperCommand

from rjem_cli.cli.console import Console
from rjem_cli.cli.options import format_default
from rjem_cli.config.common import EMBEDDED_PRESET
from rjem_cli.config.fields import options
from rjem_cli.config.sources import command_sources, preset_for, preset_source, resolve
from rjem_cli.config.training import TrainConfig
from rjem_cli.errors import RjemError


def show_group_help(context: typer.Context) -> None:
    """Show the help of a group that was called without a command."""
    if context.invoked_subcommand is None:
        Console().result(context.get_help())


class SectionedCommand(TyperCommand):
    """An option's section is its `rich_help_panel`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                is_argument = parameter.param_type_name == "argument"
                section = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or "Options"
                sections.setdefault(section, []).append((record[0], record[1] + self.default(ctx, parameter)))
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def default(self, ctx: Any, parameter: Any) -> str:
        """The default to append to the help of an option, where it is not part of it."""
        return ""


class TrainCommand(SectionedCommand):
    """`rjem train`: its help shows the values that the same command line would use."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["rjem.args"] = list(args)
        return super().parse_args(ctx, args)

    def default(self, ctx: Any, parameter: Any) -> str:
        if "rjem.values" not in ctx.meta:
            given, _, _ = self.make_parser(ctx).parse_args(list(ctx.meta.get("rjem.args", [])))
            ctx.meta["rjem.values"] = values_in_use(given)
        return format_default(ctx.meta["rjem.values"].get(parameter.name))


def values_in_use(given: dict[str, Any]) -> dict[str, Any]:
    """The values of a new run with the given options. If one is invalid, which the call without --help reports, the
    values of the default preset. A replaced option has no value."""
    names = [option.name for option in options(TrainConfig)]
    flags = {name: given[name] for name in names if given.get(name) is not None}
    try:
        sources = command_sources(TrainConfig, flags, given.get("config_file"), given.get("eps_space", "model"))
        config = resolve(TrainConfig, [preset_for(sources)[0], *sources]).config
    except RjemError:
        config = resolve(TrainConfig, [preset_source(EMBEDDED_PRESET)]).config
    values = config.to_dict()
    for name, replacement in {"dataset": "data", "epochs": "steps"}.items():
        if values[replacement] is not None:
            values[name] = None
    return values
