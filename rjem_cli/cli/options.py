"""Flags made from the config's fields: one declaration, one flag, one YAML key; and the options that commands share
by name."""

from __future__ import annotations

import inspect
import time
import typing
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Generic

import typer

from rjem_cli.cli.completions import VALUES
from rjem_cli.cli.console import Console
from rjem_cli.config import (
    AttackConfig,
    ChainOptions,
    CompareConfig,
    EvalConfig,
    GenerateConfig,
    LangevinConfig,
    NetworkOptions,
    SampleScoreOptions,
    TrainConfig,
)
from rjem_cli.config.fields import Config, ConfigT, accepted_types, flag_name
from rjem_cli.config.sources import ConfigSource, command_sources, preset_names, resolve, reworded, unknown_variables
from rjem_cli.engine.distributed import is_distributed, rank_from_environment
from rjem_cli.errors import ConfigError, RadiusError
from rjem_cli.paths import find_checkpoint, run_names

CONFIG_CLASSES = (TrainConfig, AttackConfig, LangevinConfig, GenerateConfig, EvalConfig, CompareConfig)
PANELS = {
    "DeviceOptions": "Device and seed",
    "RuntimeOptions": "Device and seed",
    "NetworkOptions": "Network and images",
    "EvalDataOptions": "Checkpoint: images and attack",
    "CheckpointScoreOptions": "Checkpoint: scores",
    "SampleScoreOptions": "Samples",
    "DataOptions": "Data",
    "ModelOptions": "Network",
    "AttackTrainingOptions": "Training attack",
    "EnergyOptions": "Energy and chains",
    "OptimizerOptions": "Optimisation",
    "GuardOptions": "Divergence",
    "SamplingOptions": "Sampling",
    "ChainOptions": "Chains",
    "RunOptions": "Run",
}
OF = {  # of eval
    "SampleScoreOptions": "sample",
    "CheckpointScoreOptions": "checkpoint",
    "EvalDataOptions": "checkpoint",
    "NetworkOptions": "checkpoint",
}
METAVARS = {int: "N", float: "X", str: "TEXT", tuple: "X,..."}
SHORT_FLAGS = {"count": "-n", "output": "-o"}

CheckpointArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A checkpoint, a run's name or folder [the newest run].",
        show_default=False,
        autocompletion=run_names,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
COMMON: dict[str, tuple[Any, Any]] = {  # parameter: its annotation and default; options that all these commands share
    "config_file": (
        Annotated[
            str | None,
            typer.Option("--config", "-c", metavar="FILE", help="YAML file with values for any of the flags."),
        ],
        None,
    ),
    "eps_space": (
        Annotated[
            str,
            typer.Option(
                "--eps-space",
                metavar="model|pixel",
                help="Unit of plain radii on the command line; 8/255 is always pixel units.",
            ),
        ],
        "model",
    ),
    "print_config": (
        Annotated[
            bool, typer.Option("--print-config", help="Print the merged values, each with its origin, and stop.")
        ],
        False,
    ),
    "dry_run": (
        Annotated[bool, typer.Option("--dry-run", help="Say what would run, what it takes and writes, and stop.")],
        False,
    ),
    "as_json": (AsJson, False),
    "quiet": (Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result and warnings.")], False),
}


@dataclass(frozen=True)
class CommandCall(Generic[ConfigT]):
    """What a command was asked: values for its knobs, how it should go about it and speak, and with which others."""

    config_class: type[ConfigT]
    flags: dict[str, Any]
    config_file: str | None
    eps_space: str
    print_config: bool
    dry_run: bool
    as_json: bool
    quiet: bool
    began: float = field(default_factory=time.perf_counter)

    def elapsed(self) -> float:
        """Seconds since the command started."""
        return time.perf_counter() - self.began

    @property
    def console(self) -> Console:
        """Of several processes only the main one reports."""
        is_main = rank_from_environment() == 0
        return Console(self.quiet or not is_main, self.as_json, mute=not is_main)

    @cached_property
    def sources(self) -> list[ConfigSource]:
        """Config layers of this command line, weakest first. Raises ConfigError or AbsentError."""
        return command_sources(self.config_class, self.flags, self.config_file, self.eps_space)

    def resolve(self, base: ConfigSource | None = None) -> ConfigT:
        """The checked config from flags, environment, file and `base`. With --print-config it is printed and the
        command ends here. Raises ConfigError or AbsentError."""
        for note in unknown_variables(CONFIG_CLASSES):
            self.console.warn(note)
        resolved = resolve(self.config_class, [*([base] if base else []), *self.sources])
        if self.print_config:
            self.console.result(resolved.to_yaml().rstrip())
            raise typer.Exit
        return resolved.config

    def find_network(self, config: NetworkOptions, checkpoint: str | None) -> Path | None:
        """The checkpoint that was named, else the newest; None for a network of the user's. Raises AbsentError, and
        ConfigError for both."""
        if config.model is None:
            if isinstance(config, ChainOptions) and "dataset" in self.flags:
                raise ConfigError("--dataset goes with --model; where a checkpoint's training images are, --data says")
            return find_checkpoint(checkpoint)
        if checkpoint is not None:
            raise ConfigError(f"give {checkpoint} or --model {config.model}, not both")
        return None

    def refuse(self, group: type[Config], subject: str) -> None:
        """Raises ConfigError for a flag of a group that does not go with this subject."""
        for option in fields(group):
            if option.name in self.flags:
                raise ConfigError(f"{flag_name(option.name)} goes with {OF[group.__name__]}s, and {subject} is none")


def with_options(
    config_class: type[ConfigT], several_processes: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one flag for each field of `config_class` and the COMMON options; what was given arrives as its
    argument `call`. torchrun can start commands with `several_processes`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        names = [option.name for option in fields(config_class)]

        def with_flags(**values: Any) -> None:
            flags = {name: value for name in names if (value := values.pop(name)) is not None}
            common = {name: values.pop(name) for name in COMMON}
            if is_distributed() and not several_processes:
                raise ConfigError(f"rjem {command.__name__} runs in one process; start it without torchrun")
            call = CommandCall(config_class, flags, **common)
            try:
                command(call, **values)
            except RadiusError as error:
                raise reworded(error, call.sources) from None

        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        parameters += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in COMMON.items()
        ]
        parameters += [flag_parameter(config_class, option) for option in fields(config_class)]
        with_flags.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_flags.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        with_flags.__name__, with_flags.__doc__ = command.__name__, command.__doc__
        return with_flags

    return decorate


def flag_parameter(config_class: type[Config], option: Field[Any]) -> inspect.Parameter:
    """Values arrive as text and the config checks them, so that a flag, a variable and a YAML key give the same
    error."""
    kind = next(
        kind for kind in accepted_types(typing.get_type_hints(config_class)[option.name]) if kind is not type(None)
    )
    choices = option.metadata.get("choices")
    flags = [
        flag_name(option.name),
        *([SHORT_FLAGS[option.name]] if option.name in SHORT_FLAGS else []),
    ]
    if kind is bool:
        flags = [f"{flags[0]}/--no-{flags[0][2:]}"]
    flag = typer.Option(
        *flags,
        help=describe(config_class, option) + ("" if config_class is TrainConfig else shown_default(option.default)),
        metavar=metavar(kind, choices),
        rich_help_panel=PANELS.get(owner(config_class, option.name).__name__, "Options"),
        autocompletion=(lambda: list(choices)) if choices else VALUES.get(option.name),
        show_default=False,
    )
    annotation = Annotated[(bool | None) if kind is bool else (str | None), flag]  # type: ignore[valid-type]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def metavar(kind: Any, choices: tuple[str, ...] | None) -> str | None:
    if kind is bool:
        return None
    return "|".join(choices) if choices and len(choices) < 4 else METAVARS[typing.get_origin(kind) or kind]


def describe(config_class: type[Config], option: Field[Any]) -> str:
    """Its meaning and choices; of a command on two kinds of things, which of them it goes with."""
    group = owner(config_class, option.name).__name__
    subject = f"{OF[group].capitalize()}s: " if group in OF and issubclass(config_class, SampleScoreOptions) else ""
    choices = preset_names() if option.name == "preset" else option.metadata.get("choices")
    listed = f" ({', '.join(choices)})" if choices and len(choices) >= 4 else ""
    return f"{subject}{option.metadata['help']}{listed}."


def shown_default(value: Any) -> str:
    """` [value]`, or nothing for None."""
    return "" if value is None else f" [{str(value).lower() if isinstance(value, bool) else value}]"


def owner(config_class: type[Config], name: str) -> type:
    """The class in which a knob was declared; it names the help panel."""
    return next(base for base in reversed(config_class.__mro__) if name in inspect.get_annotations(base))
