"""Every knob of rjem, declared once: its meaning, unit, default and range.

A field here is a flag (`adv_eps` -> `--adv-eps`), a YAML key, an environment variable (`RJEM_ADV_EPS`) and an entry
of a checkpoint's metadata. The defaults are the paper's (Korst & Asadulaev 2022) and, where it is silent, JEM++'s
(Yang & Ji 2021); presets change them.
"""

from __future__ import annotations

import math
import types
import typing
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from rjem_cli.errors import ConfigError, did_you_mean

DATASETS = ("shifted-digits", "digits", "cifar10", "cifar100", "svhn")
SAMPLE_MODES = ("energy", "attack", "combined")
PIXEL_PER_MODEL_UNIT = 0.5  # model units span [-1, 1], pixel units [0, 1]


def knob(
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


def describe_epsilon(model_units: float) -> str:
    """Both units, always: `0.1 = 12.75/255`."""
    return f"{model_units:g} = {model_units * PIXEL_PER_MODEL_UNIT * 255:g}/255"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all groups of knobs share: checks at construction, conversion from and to plain data."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for knob_field in fields(self):
            value = getattr(self, knob_field.name)
            if knob_field.metadata.get("epsilon") and value is not None:
                value = coerce_epsilon(knob_field.name, value)
            else:
                value = coerce(knob_field.name, value, hints[knob_field.name])
            object.__setattr__(self, knob_field.name, value)
            check_limits(knob_field.name, value, knob_field.metadata)

    @classmethod
    def from_dict(cls: type[OptionsT], values: dict[str, Any], source: str = "the config") -> OptionsT:
        """Build from plain data; an unknown key raises ConfigError that names the nearest known one."""
        known = {knob_field.name for knob_field in fields(cls)}
        for key in values:
            if key not in known:
                raise ConfigError(f"unknown key {key!r} in {source}; {did_you_mean(str(key), sorted(known))}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


OptionsT = TypeVar("OptionsT", bound=Options)


def accepted_types(hint: Any) -> tuple[type, ...]:
    """The plain types of an annotation: `int | None` gives (int, NoneType)."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return typing.get_args(hint)
    return (hint,)


def coerce(name: str, value: Any, hint: Any) -> Any:
    """Turn text and ints into the declared type. YAML reads `1e-3` as text; this is where it becomes a number."""
    accepted = accepted_types(hint)
    if value is None and type(None) in accepted:
        return None
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
        raise ConfigError(f"{flag_name(name)} {value!r}: give {wanted}") from None


def coerce_epsilon(name: str, value: float | str) -> float:
    """Plain numbers in a config are model units."""
    try:
        return parse_epsilon(value, "model")
    except ValueError:
        raise ConfigError(
            f"{flag_name(name)} {value!r}: give a number such as 0.1, or pixel units such as 8/255"
        ) from None


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
        raise ConfigError(f"{flag} {value:g} is too small; give {limits['minimum']:g} or more")
    if limits.get("above") is not None and value <= limits["above"]:
        raise ConfigError(f"{flag} {value:g} is too small; give more than {limits['above']:g}")
    if limits.get("maximum") is not None and value > limits["maximum"]:
        raise ConfigError(f"{flag} {value:g} is too large; give {limits['maximum']:g} or less")


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(Options):
    device: str = knob("auto", "auto, cpu, mps, cuda or cuda:N; auto takes the fastest that is there and says why")
    precision: str = knob(
        "auto", "Arithmetic of the network; chain states stay fp32", choices=("auto", "fp32", "tf32", "bf16")
    )
    seed: int = knob(
        0,
        "Seed of the run; sample i depends on seed + i, so space seeds by the number of samples",
        minimum=0,
        maximum=2**62,
    )


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    dataset: str = knob("cifar10", "Built-in data set", choices=DATASETS)
    data: str | None = knob(None, "Your images instead: a folder of class folders, .zip, .tar or .tar.xz")
    test_data: str | None = knob(None, "Test images for --data, in the same forms; without it they are split off")
    val_fraction: float = knob(0.1, "Share of the training images kept for validation", minimum=0, maximum=0.5)
    crop_pad: int = knob(4, "Augmentation: reflect-pad by this many pixels, then crop at random", minimum=0)
    flip: bool = knob(True, "Augmentation: mirror half of the images")
    augment_energy: bool = knob(
        True, "Augment the real images of the p(x) term too (JEM++ does; SADA-JEM found that it hurts)"
    )
    input_noise_std: float = knob(0.03, "Gaussian noise added to training images, in model units", minimum=0)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    depth: int = knob(28, "WRN depth, 6k + 4", minimum=10)
    width: int = knob(10, "WRN width factor", minimum=1)
    norm_layer: str = knob("batch", "Normalisation", choices=("batch", "group", "none"))


@dataclass(frozen=True, kw_only=True)
class AttackTrainingOptions(Options):
    adv_eps: float = knob(
        0.1, "Radius of the training attack, model units; 8/255 means pixel units", minimum=0, maximum=16, epsilon=True
    )
    pgd_steps: int = knob(15, "Steps of the training attack; 0 trains on clean images", minimum=0)
    pgd_step_size: float | None = knob(
        None, "Step of the training attack, model units (default: 2.5 * adv_eps / pgd_steps)", above=0
    )
    norm: str = knob("linf", "Norm of the attack's ball", choices=("linf", "l2"))

    @property
    def attacks(self) -> bool:
        """False trains on clean images."""
        return self.pgd_steps > 0 and self.adv_eps > 0


@dataclass(frozen=True, kw_only=True)
class EnergyOptions(Options):
    px_weight: float = knob(1.0, "Weight of E(x) - E(x_q); 0 leaves a plain or robust classifier", minimum=0)
    ce_weight: float = knob(1.0, "Weight of the cross-entropy", minimum=0)
    energy_l2: float = knob(0.0, "Weight of the penalty E(x)^2 + E(x_q)^2", minimum=0)
    sgld_steps: int = knob(10, "The paper's m: outer SGLD steps, one network pass each", minimum=1)
    inner_steps: int = knob(5, "The paper's n: inner steps per outer step, in closed form", minimum=1)
    sgld_step_size: float = knob(0.2, "Inner step size; one outer step moves inner_steps times this", above=0)
    noise_std: float = knob(0.0, "Noise per outer SGLD step, model units", minimum=0)
    grad_clip: float = knob(1.0, "Each component of dE/dx is clipped to this", above=0)
    loss_statistics: str = knob(
        "joint",
        "BatchNorm statistics of the loss: joint over x_adv, x and x_q, or separate (JEM++'s three passes)",
        choices=("joint", "separate"),
    )
    buffer_size: int = knob(10_000, "Chains kept in the replay buffer", minimum=1)
    reinit_prob: float = knob(0.05, "Chance that a chain starts again from the prior", minimum=0, maximum=1)


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions(Options):
    batch_size: int = knob(64, "Images per step", minimum=1)
    epochs: float = knob(150.0, "Passes over the training images", above=0, replaces="steps")
    steps: int | None = knob(None, "Training steps, instead of epochs", minimum=1)
    optimizer: str = knob("sgd", "Optimizer", choices=("sgd", "adam"))
    lr: float = knob(0.1, "Peak learning rate", above=0)
    momentum: float = knob(0.9, "Momentum of SGD, first beta of Adam", minimum=0, maximum=0.9999)
    max_grad_norm: float | None = knob(None, "Clip the parameters' gradient to this norm", above=0)
    weight_decay: float = knob(4e-4, "L2 weight decay", minimum=0)
    warmup_steps: int = knob(1000, "Steps of linear warm-up", minimum=0)
    lr_schedule: str = knob(
        "steps",
        "steps: times lr_decay at 1/3, 2/3 and 5/6 of the run; cosine: to 0",
        choices=("steps", "cosine", "constant"),
    )
    lr_decay: float = knob(0.2, "Factor of the steps schedule", above=0, maximum=1)
    ema_decay: float = knob(
        0.999,
        "Decay of the averaged weights, which sample and are tested; 0 averages nothing",
        minimum=0,
        maximum=0.99999,
    )


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(Options):
    """How a finished model samples: its sample grids, and the defaults of `rjem generate` on its checkpoint."""

    sample_steps: int = knob(50, "The paper's m when sampling: outer SGLD steps", minimum=0)
    attack_eps: float = knob(
        0.5, "Radius of the targeted attack that makes samples", minimum=0, maximum=64, epsilon=True
    )
    attack_steps: int = knob(20, "Steps of that attack", minimum=0)
    contrast: float = knob(0.8, "Scale of the attack's result before SGLD (mode combined)", above=0, maximum=1)


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    run: str | None = knob(None, "Name of the run (default: preset and date)")
    log_every: int = knob(20, "Steps between lines of metrics.jsonl", minimum=1)
    checkpoint_every: int = knob(500, "Steps between checkpoints", minimum=1)
    sample_every: int = knob(500, "Steps between sample grids", minimum=1)
    eval_limit: int = knob(
        1000, "Test images that the final table is measured on, spread evenly; 0 means all", minimum=0
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(
    RunOptions,
    SamplingOptions,
    OptimizerOptions,
    EnergyOptions,
    AttackTrainingOptions,
    ModelOptions,
    DataOptions,
    DeviceOptions,
):
    """Everything that decides a training run. Saved as config.yaml and inside every checkpoint."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.depth - 4) % 6:
            lower = self.depth - (self.depth - 4) % 6
            raise ConfigError(f"--depth {self.depth}: a WRN's depth is 6k + 4; give {lower} or {lower + 6}")
        if self.px_weight == 0 and self.ce_weight == 0:
            raise ConfigError("--px-weight 0 and --ce-weight 0 leave nothing to train")
        if self.px_weight and self.buffer_size < self.batch_size:
            raise ConfigError(f"--buffer-size {self.buffer_size} is below --batch-size {self.batch_size}; raise it")
        if self.test_data and not self.data:
            raise ConfigError("--test-data goes with --data")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(DeviceOptions):
    """What `rjem generate` makes. None means: as the checkpoint's own config says."""

    classes: str = knob("all", "Class names or numbers, several with commas, or all (balanced)")
    mode: str = knob(
        "energy", "energy: SGLD; attack: targeted PGD; combined: PGD, contrast, SGLD", choices=SAMPLE_MODES
    )
    count: int = knob(100, "Number of samples", minimum=1)
    batch_size: int = knob(250, "Samples per batch; changes speed, memory and last bits", minimum=1)
    output: str = knob("samples", "Folder for PNG files, labels.csv, meta.json and grid.png")
    overwrite: bool = knob(False, "Replace the samples of an earlier call in that folder")
    data: str | None = knob(None, "Where the training images are now, if the prior must be fitted again")
    sgld_steps: int | None = knob(None, "Outer SGLD steps, one network pass each", minimum=0)
    sgld_step_size: float | None = knob(None, "Inner step size", above=0)
    inner_steps: int | None = knob(None, "Inner steps per outer step", minimum=1)
    noise_std: float | None = knob(None, "Noise per outer SGLD step, model units", minimum=0)
    attack_eps: float | None = knob(
        None, "Radius of the targeted attack, model units; 8/255 means pixel units", minimum=0, maximum=64, epsilon=True
    )
    attack_steps: int | None = knob(None, "Steps of the targeted attack", minimum=0)
    contrast: float | None = knob(None, "Scale of the attack's result before SGLD (mode combined)", above=0, maximum=1)
