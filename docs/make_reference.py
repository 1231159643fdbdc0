"""Writes docs/reference.md: every command with every flag, from the declarations themselves.

python docs/make_reference.py
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import typer

from rjem_cli.cli.app import app
from rjem_cli.cli.options import format_default
from rjem_cli.config.fields import options
from rjem_cli.config.sources import preset_names, preset_source, resolve, variable_name
from rjem_cli.config.training import TrainConfig

HERE = Path(__file__).parent
HEAD = """# Reference
Every command and flag, as `rjem COMMAND --help` shows them. Brackets show the default. A flag with a variable beside it
also takes its value from that variable or from `-c FILE.yaml` (`--adv-eps 0.1`, `RJEM_ADV_EPS=0.1`, `adv_eps: 0.1`).

`python docs/make_reference.py` writes this page; a test fails if it is out of date.
"""


def reference() -> str:
    return HEAD + "".join(section("rjem", typer.main.get_command(app)))


def section(name: str, command: Any) -> list[str]:
    """The section of a command, or those of all commands in a group."""
    inner = getattr(command, "commands", None)
    if inner is not None:
        return [part for key, child in inner.items() for part in section(f"{name} {key}", child)]
    parts = [f"\n## {name}\n", usage(name, command), text_of(command)]
    return [*parts, *([presets()] if name == "rjem train" else []), *panels(name, command)]


def presets() -> str:
    """A table of the values that presets change."""
    configs = [resolve(TrainConfig, [preset_source(name)]).config for name in preset_names()]
    rows = ""
    for option in options(TrainConfig):
        values = [getattr(config, option.name) for config in configs]
        if option.name != "preset" and any(value != option.default for value in values):
            rows += f"| `{option.flag}` | {' | '.join(map(written, values))} |\n"
    titles = " | ".join(f"`{name}`" for name in preset_names())
    return (
        "\n**Presets**\n\nThe tables below show the defaults. A preset changes these values:\n\n"
        f"| flag | {titles} |\n|---|{'---|' * len(configs)}\n{rows}"
    )


def written(value: Any) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def usage(name: str, command: Any) -> str:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    words = [metavar if argument.required else f"[{metavar}]" for argument in arguments if (metavar := shown(argument))]
    lines = "".join(f"- `{shown(argument)}`: {argument.help}\n" for argument in arguments)
    return f"`{' '.join([name, *words])} [FLAGS]`\n\n{lines}"


def shown(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def text_of(command: Any) -> str:
    """The description, then the examples as a code block."""
    what, _, examples = inspect.cleandoc(command.help).partition("\nExamples:\n")
    block = "\n".join(line.strip() for line in examples.splitlines() if line.strip())
    return f"\n{' '.join(what.split())}\n\n```sh\n{block}\n```\n"


def panels(name: str, command: Any) -> list[str]:
    """A table for each group of flags, in the order of --help."""
    defaults = {option.name: option.default for option in options(TrainConfig)} if name == "rjem train" else {}
    found: dict[str, list[str]] = {}
    for parameter in command.params:
        if parameter.param_type_name == "option" and parameter.name != "help":
            panel = getattr(parameter, "rich_help_panel", None) or "Options"
            found.setdefault(panel, []).append(row(parameter, format_default(defaults.get(parameter.name))))
    return [f"\n**{panel}**\n\n| flag | meaning |\n|---|---|\n{''.join(rows)}" for panel, rows in found.items()]


def row(option: Any, default: str) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    metavar = "" if option.is_flag or not option.metavar else f" {option.metavar}"
    escaped = f"{option.help or ''}{default}".replace("|", "\\|")
    flag = f"{names}{metavar}".replace("|", "\\|")
    variable = f" `{variable_name(option.name)}`" if getattr(option, "rich_help_panel", None) else ""
    return f"| `{flag}`{variable} | {escaped} |\n"


if __name__ == "__main__":
    (HERE / "reference.md").write_text(reference(), encoding="utf-8")
