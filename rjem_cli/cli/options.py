"""Flags made from config classes, so that each option is declared once; and the flags that all these commands share."""

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Generic

import typer

from rjem_cli.cli.completions import COMPLETERS
from rjem_cli.cli.console import Console
from rjem_cli.config.common import NetworkOptions
from rjem_cli.config.exchange import ExportConfig, ImportConfig
from rjem_cli.config.fields import Config, ConfigT, Option, options
from rjem_cli.config.sampling import ChainOptions, GenerateConfig, LangevinConfig
from rjem_cli.config.scoring import AttackConfig, CompareConfig, EvalConfig
from rjem_cli.config.sources import ConfigSource, command_sources, locate, preset_names, resolve, unknown_variables
from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.distributed import is_distributed, rank_from_environment
from rjem_cli.errors import ConfigError, OptionError
from rjem_cli.paths import find_checkpoint, model_names

CONFIG_CLASSES = (
    TrainConfig,
    AttackConfig,
    LangevinConfig,
    GenerateConfig,
    EvalConfig,
    CompareConfig,
    ImportConfig,
    ExportConfig,
)
SECTIONS = {  # of the help, by the class that declares an option
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
    "ImportConfig": "Network and images",
    "ExportConfig": "Output",
}
METAVARS = {int: "N", float: "X", str: "TEXT"}
SHORT_FLAGS = {"count": ["-n"], "output": ["-o"]}

CheckpointArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A checkpoint file, a run (name or folder), or a pretrained model such as cifar10-16 [the newest run].",
        show_default=False,
        autocompletion=model_names,
    ),
]
ConfigFile = Annotated[
    str | None, typer.Option("--config", "-c", metavar="FILE", help="YAML file with values of any options.")
]
EpsSpace = Annotated[
    str,
    typer.Option(
        metavar="model|pixel", help="Unit of plain radii in flags and variables; 8/255 is always in pixel units."
    ),
]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print every value with its origin; then exit.")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print the plan, estimated time and memory, and output paths; then exit."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result and warnings.")]
SHARED: dict[str, tuple[Any, Any]] = {  # fields of CommandCall: annotation and default
    "config_file": (ConfigFile, None),
    "eps_space": (EpsSpace, "model"),
    "print_config": (PrintConfig, False),
    "dry_run": (DryRun, False),
    "as_json": (AsJson, False),
    "quiet": (Quiet, False),
}


@dataclass(frozen=True)
class CommandCall(Generic[ConfigT]):
    """One call of a command: the flags that were given, by option name, and the flags that all commands share."""

    config_class: type[ConfigT]
    flags: dict[str, Any]
    config_file: str | None
    eps_space: str
    print_config: bool
    dry_run: bool
    as_json: bool
    quiet: bool
    start: float = field(default_factory=time.perf_counter)

    def elapsed(self) -> float:
        """Seconds since the command started."""
        return time.perf_counter() - self.start

    @property
    def console(self) -> Console:
        """With several processes, only that of the main one writes."""
        is_main = rank_from_environment() == 0
        return Console(self.quiet or not is_main, self.as_json, mute=not is_main)

    @cached_property
    def sources(self) -> list[ConfigSource]:
        """The config sources of this command line, weakest first. Raises ConfigError or AbsentError."""
        return command_sources(self.config_class, self.flags, self.config_file, self.eps_space)

    def resolve(self, base: ConfigSource | None = None) -> ConfigT:
        """The checked config from flags, environment, file and `base`. With --print-config, print it and exit. Raises
        ConfigError or AbsentError."""
        for warning in unknown_variables(CONFIG_CLASSES):
            self.console.warn(warning)
        resolved = resolve(self.config_class, [*([base] if base else []), *self.sources])
        if self.print_config:
            self.console.result(resolved.to_yaml().rstrip())
            raise typer.Exit
        return resolved.config

    def find_network(self, config: NetworkOptions, checkpoint: str | None) -> Path | None:
        """The named checkpoint, else that of the newest run; None with --model. Raises AbsentError or ConfigError."""
        if config.model is None:
            if isinstance(config, ChainOptions) and "dataset" in self.flags:
                raise ConfigError("--dataset needs --model; for the training images of a checkpoint, give --data")
            return find_checkpoint(checkpoint)
        if checkpoint is not None:
            raise ConfigError(f"give {checkpoint} or --model {config.model}, not both")
        return None

    def reject(self, group: type[Config], reason: str, allowed: tuple[str, ...] = ()) -> None:
        """Raises ConfigError, `--flag reason`, for a given flag of the group that is not `allowed`."""
        for option in options(group):
            if option.name in self.flags and option.name not in allowed:
                raise ConfigError(f"{option.flag} {reason}")


def with_options(
    config_class: type[ConfigT], several_processes: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command: add one flag per option of `config_class` and the shared flags, and pass them as its first
    argument, a CommandCall. Only a command with `several_processes` may be started by torchrun."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def with_flags(**values: Any) -> None:
            flags = {option.name: values.pop(option.name) for option in options(config_class)}
            shared = {name: values.pop(name) for name in SHARED}
            if is_distributed() and not several_processes:
                raise ConfigError("this command runs in one process; start it without torchrun")
            given = {name: value for name, value in flags.items() if value is not None}
            call = CommandCall(config_class, given, **shared)
            try:
                command(call, **values)
            except OptionError as error:  # raised where a checkpoint decides what is valid
                raise locate(error, call.sources) from None

        keyword = inspect.Parameter.KEYWORD_ONLY
        arguments = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        parameters = [argument.replace(kind=keyword) for argument in arguments]
        for name, (annotation, default) in SHARED.items():
            parameters.append(inspect.Parameter(name, keyword, default=default, annotation=annotation))
        for option in options(config_class):
            annotation = flag_annotation(option, option.default if config_class is not TrainConfig else None)
            parameters.append(inspect.Parameter(option.name, keyword, default=None, annotation=annotation))
        with_flags.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_flags.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        with_flags.__name__, with_flags.__doc__ = command.__name__, command.__doc__
        return with_flags

    return decorate


def flag_annotation(option: Option, default: Any) -> Any:
    """The flag of an option. Its value stays text, so that a flag, a variable and a YAML key give the same errors."""
    flag, choices = option.flag, option.choices
    flags = [f"{flag}/--no-{flag[2:]}"] if option.kind is bool else [flag, *SHORT_FLAGS.get(option.name, [])]
    metavar = "|".join(choices) if choices and len(choices) < 4 else METAVARS.get(option.kind)
    listed = preset_names() if option.name == "preset" else choices if choices and len(choices) >= 4 else ()
    values = f" ({', '.join(listed)})" if listed else ""
    typer_option = typer.Option(
        *flags,
        help=f"{option.help}{values}.{format_default(default)}",
        metavar="X,..." if option.is_list else metavar,
        rich_help_panel=SECTIONS.get(option.group, "Options"),
        autocompletion=(lambda: list(choices)) if choices else COMPLETERS.get(option.name),
        show_default=False,
    )
    return Annotated[(bool | None) if option.kind is bool else (str | None), typer_option]


def format_default(value: Any) -> str:
    """` [value]`, or nothing for None."""
    return "" if value is None else f" [{str(value).lower() if isinstance(value, bool) else value}]"
