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
from rjem_cli.engine.ranks import ALONE, Ranks, are_started, joined
from rjem_cli.errors import ConfigError, RadiusError
from rjem_cli.interface.completions import VALUES
from rjem_cli.interface.console import Console
from rjem_cli.interface.settings import Layer, command_layers, preset_names, reworded, settle, unknown_variables
from rjem_cli.knobs import Options, OptionsT, accepted_types, flag_name
from rjem_cli.paths import find_checkpoint, run_names

WITH_KNOBS = (TrainConfig, AttackConfig, LangevinConfig, GenerateConfig, EvalConfig, CompareConfig)
PANELS = {
    "DeviceOptions": "Device and seed",
    "RuntimeOptions": "Device and seed",
    "NetworkOptions": "Network and images",
    "TestOptions": "Checkpoint: images and attack",
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
    "TestOptions": "checkpoint",
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
class Call(Generic[OptionsT]):
    """What a command was asked: values for its knobs, how it should go about it and speak, and with which others."""

    config_class: type[OptionsT]
    flags: dict[str, Any]
    config_file: str | None
    eps_space: str
    print_config: bool
    dry_run: bool
    as_json: bool
    quiet: bool
    ranks: Ranks = ALONE
    began: float = field(default_factory=time.perf_counter)

    def seconds_so_far(self) -> float:
        """Of this call: at the start of its work, what every such call takes to come there."""
        return time.perf_counter() - self.began

    @property
    def console(self) -> Console:
        """Of several processes the first one speaks."""
        return Console(self.quiet or not self.ranks.is_first, self.as_json, mute=not self.ranks.is_first)

    @cached_property
    def layers(self) -> list[Layer]:
        """Config layers of this command line, weakest first. Raises ConfigError or AbsentError."""
        return command_layers(self.config_class, self.flags, self.config_file, self.eps_space)

    def settle(self, base: Layer | None = None) -> OptionsT:
        """The checked config from flags, environment, file and `base`. With --print-config it is printed and the
        command ends here. Raises ConfigError or AbsentError."""
        for note in unknown_variables(WITH_KNOBS):
            self.console.warn(note)
        settled = settle(self.config_class, [*([base] if base else []), *self.layers])
        if self.print_config:
            self.console.result(settled.to_yaml().rstrip())
            raise typer.Exit
        return settled.config

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

    def refuse(self, group: type[Options], subject: str) -> None:
        """Raises ConfigError for a flag of a group that does not go with this subject."""
        for knob in fields(group):
            if knob.name in self.flags:
                raise ConfigError(f"{flag_name(knob.name)} goes with {OF[group.__name__]}s, and {subject} is none")


def with_knobs(
    config_class: type[OptionsT], ranks: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one flag for each field of `config_class` and the COMMON options; what was given arrives as its
    argument `call`. With `ranks`, several processes can share its work."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        names = [knob.name for knob in fields(config_class)]

        def with_flags(**values: Any) -> None:
            flags = {name: value for name in names if (value := values.pop(name)) is not None}
            common = {name: values.pop(name) for name in COMMON}
            if are_started() and not ranks:
                raise ConfigError(f"rjem {command.__name__} runs in one process; start it without torchrun")
            with joined() as others:
                call = Call(config_class, flags, **common, ranks=others)
                try:
                    command(call, **values)
                except RadiusError as error:
                    raise reworded(error, call.layers) from None

        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        parameters += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in COMMON.items()
        ]
        parameters += [flag_parameter(config_class, knob) for knob in fields(config_class)]
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
        help=describe(config_class, knob) + ("" if config_class is TrainConfig else shown_default(knob.default)),
        metavar=metavar(kind, choices),
        rich_help_panel=PANELS.get(owner(config_class, knob.name).__name__, "Options"),
        autocompletion=(lambda: list(choices)) if choices else VALUES.get(knob.name),
        show_default=False,
    )
    annotation = Annotated[(bool | None) if kind is bool else (str | None), option]  # type: ignore[valid-type]
    return inspect.Parameter(knob.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def metavar(kind: Any, choices: tuple[str, ...] | None) -> str | None:
    if kind is bool:
        return None
    return "|".join(choices) if choices and len(choices) < 4 else METAVARS[typing.get_origin(kind) or kind]


def describe(config_class: type[Options], knob: Field[Any]) -> str:
    """Its meaning and choices; of a command on two kinds of things, which of them it goes with."""
    group = owner(config_class, knob.name).__name__
    subject = f"{OF[group].capitalize()}s: " if group in OF and issubclass(config_class, SampleScoreOptions) else ""
    choices = preset_names() if knob.name == "preset" else knob.metadata.get("choices")
    listed = f" ({', '.join(choices)})" if choices and len(choices) >= 4 else ""
    return f"{subject}{knob.metadata['help']}{listed}."


def shown_default(value: Any) -> str:
    """` [value]`, or nothing for None."""
    return "" if value is None else f" [{str(value).lower() if isinstance(value, bool) else value}]"


def owner(config_class: type[Options], name: str) -> type:
    """The class in which a knob was declared; it names the help panel."""
    return next(base for base in reversed(config_class.__mro__) if name in inspect.get_annotations(base))
