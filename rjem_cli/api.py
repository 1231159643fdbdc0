"""rjem for Python: load, sample, attack, score. `import rjem_cli as rjem` loads this module when it is first used.

Images `x` are float (B, C, H, W) in [-1, 1]. Options are those of the commands, as keyword arguments: `--sgld-steps` is
`sgld_steps`. Errors are the classes of `rjem_cli.errors` and name arguments.
"""

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rjem_cli.config.common import RuntimeOptions
from rjem_cli.config.sampling import GenerateConfig
from rjem_cli.config.scoring import AttackConfig, CheckpointScoreOptions, EvalConfig, SampleScoreOptions
from rjem_cli.engine.attacks.robustness import AttackPlan, attack_images
from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.data.collection import ImageCollection
from rjem_cli.engine.data.decode import resize_pixels
from rjem_cli.engine.data.images import parse_class, to_pixels
from rjem_cli.engine.inference import Model
from rjem_cli.engine.metrics.classifier import score_classifier
from rjem_cli.engine.metrics.samples import read_samples, score_samples
from rjem_cli.engine.models.eval_images import resolve_radii
from rjem_cli.engine.runtime import scoring_runtime
from rjem_cli.engine.sampling.generate import SampleSetup
from rjem_cli.errors import AbsentError, ConfigError, DataError, did_you_mean
from rjem_cli.paths import find_checkpoint

__all__ = ["AttackResult", "Model", "Scores", "attack", "load", "sample", "score"]

SCORE_GROUPS = (SampleScoreOptions, CheckpointScoreOptions)
Class = str | int  # a class name, or its number
FLAG_NAMES = {"class": "classes"}  # flags whose argument has another name
ATTACK_OPTIONS = set("norm method steps restarts step_size loss start iterate min_confidence seed batch_size".split())
FILE_OPTIONS = {"save", "overwrite", "results", "require", "output", "shard", "batch_size"}
MODEL_OPTIONS = {"device", "precision", "compile", "cuda_graphs", "model", "dataset"}  # what a loaded model already has


class AttackResult(NamedTuple):
    """Per image: the attacked x (B, C, H, W), whether the attack succeeded, bool (B,), and the loss there (B,)."""

    x: Tensor
    success: Tensor
    loss: Tensor


@dataclass(frozen=True)
class Scores(Mapping[str, float]):
    """Scores by name: `scores["fd_judge"]`. `document` also holds their protocol, notes and values per class, as
    `rjem eval --json` prints it."""

    scores: dict[str, float]
    document: dict[str, Any]

    def __getitem__(self, name: str) -> float:
        if name not in self.scores:
            raise KeyError(f"{name}; there are {', '.join(self.scores)} ({'; '.join(self.notes)})")
        return self.scores[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def notes(self) -> list[str]:
        """What limits the scores."""
        return list(self.document["notes"])


def load(name: str | Path | None = None, *, device: str = "auto", precision: str = "auto") -> Model:
    """The network of a run (its name or folder), of a checkpoint file, or of the newest run.

    Raises AbsentError if there is none, DataError for a damaged file, ConfigError for an unavailable device.
    """
    with argument_errors():
        path = find_checkpoint(None if name is None else str(name))
        return Model.load_checkpoint(path, RuntimeOptions(device=device, precision=precision))


def sample(
    model: Model,
    classes: str | Sequence[Class] = "all",
    n: int = 100,
    *,
    mode: str = "energy",
    seed: int = 0,
    **options: Any,
) -> Tensor:
    """`n` samples (n, C, H, W) in [-1, 1], on the model's device. Sample i has the class `classes[i % len(classes)]`
    and depends on seed + i only.

    `classes`: names or numbers, "all", or "none" for chains on E(x). `mode`: "energy", "attack" or "combined". Other
    options are those of `rjem generate`, such as sgld_steps, attack_eps="8/255" or init="noise". Raises ConfigError for
    an invalid option, AbsentError if the chains' start is missing, RjemError for samples that are not finite.
    """
    with argument_errors():
        check_option_names("sample", options, without=MODEL_OPTIONS | FILE_OPTIONS | {"count"})
        listed = classes if isinstance(classes, str) else ",".join(map(str, classes))
        config = GenerateConfig.from_dict({**options, "classes": listed, "count": n, "mode": mode, "seed": seed})
        return SampleSetup.build(config, model).fit_memory().fit_parallel().load_start().sample()


def attack(
    model: Model, x: Tensor, y: Tensor | Sequence[Class], *, eps: float | str | None = None, **options: Any
) -> AttackResult:
    """Attack images x (B, C, H, W) in [-1, 1] of classes y (B,), numbers or names.

    `eps`: a radius in model units, or "8/255" in pixel units; by default that of the model's training. Other options
    are those of `rjem attack`: norm, method, steps, restarts, step_size, loss, start, iterate, min_confidence, seed,
    batch_size; and targeted=True, if y are the classes to push towards. Raises ConfigError for an invalid option or
    shape.
    """
    with argument_errors():
        if (targeted := options.pop("targeted", False)) not in (True, False):
            raise ConfigError(f"targeted is {targeted!r:.80}; give True or False")
        check_option_names("attack", options, only=ATTACK_OPTIONS)
        config = AttackConfig.from_dict({**options, **({} if eps is None else {"eps": (eps,)})})
        norm, (radius,) = resolve_radii(config, model.info)
        plan = AttackPlan.from_config(config, norm, bool(targeted))
        labels = parse_labels(model, y)
        check_images(model, x, labels)
        seeds, batches = config.seed + torch.arange(len(x)), BatchSizer(config.batch_size)
        network, search, images = model.scoring_fn, model.logits_fn, (x.float(), labels, seeds)
        return AttackResult(*attack_images(network, plan, radius, *images, model.device, batches, search_fn=search))


def score(subject: Tensor | str | Path | Model, reference: str | None = None, **options: Any) -> Scores:
    """Score samples (a tensor x in [-1, 1] or uint8, or a place that `rjem eval` reads) or a model.

    `reference`: such as "cifar10:train", a folder or statistics. Other options are those of `rjem eval`, such as
    features="judge", metrics="fid,kid", or eps="8/255" for a model. Raises ConfigError, AbsentError or DataError.
    """
    with argument_errors():
        options |= {} if reference is None else {"reference": reference}
        of_samples, of_models = ({option.name for option in fields(group)} for group in SCORE_GROUPS)
        others = of_samples if isinstance(subject, Model) else of_models - {"image_size"}
        check_option_names("score", options, without=others | FILE_OPTIONS - {"batch_size"} | {"model"})
        config = EvalConfig.from_dict(options)
        if isinstance(subject, Model):
            runtime = scoring_runtime(str(subject.device) if config.device == "auto" else config.device)
            return Scores(*score_classifier(config, Model.from_checkpoint(subject.checkpoint, runtime)))
        return Scores(*score_samples(config, collect_samples(subject, config.image_size)))


def collect_samples(subject: Tensor | str | Path, image_size: int | None) -> ImageCollection:
    """Samples as `rjem eval` reads them, or a tensor in [-1, 1] or uint8. Raises ConfigError for other values."""
    if isinstance(subject, str | Path):
        return read_samples([str(subject)], lambda: sys.stdin.buffer, image_size)
    if not isinstance(subject, Tensor) or subject.dim() != 4 or subject.shape[1] not in (1, 3):
        raise ConfigError(f"samples are {describe(subject)}; give a tensor (N, C, H, W) with C = 1 or 3")
    if subject.dtype != torch.uint8:
        check_range("samples", subject)
        subject = to_pixels(subject)
    return ImageCollection("samples", resize_pixels(subject.cpu(), image_size))


def describe(value: object) -> str:
    """`float32 (4, 3, 8, 8)`, or the name of the type."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def check_range(name: str, x: Tensor) -> None:
    """Raises ConfigError unless x is float in [-1, 1]."""
    if not x.is_floating_point():
        raise ConfigError(f"{name} is {describe(x)}; give float in [-1, 1]")
    if len(x) and not x.abs().amax() <= 1:
        raise ConfigError(f"{name} has values up to {float(x.abs().amax()):.4g}; give images in [-1, 1]")


def check_option_names(
    function: str, options: Mapping[str, Any], only: set[str] | None = None, without: set[str] | None = None
) -> None:
    """Raises ConfigError for an option of the command that means nothing here."""
    for name in options:
        if (only is not None and name not in only) or name in (without or ()):
            hint = f"; {did_you_mean(name, sorted(only))}" if only else ""
            raise ConfigError(f"rjem.{function} has no option {name}{hint}")


def parse_labels(model: Model, y: Tensor | Sequence[Class]) -> Tensor:
    """Class numbers (B,), int64. Raises ConfigError for an unknown class."""
    if isinstance(y, Tensor) and not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool):
        return y.long().cpu()
    if isinstance(y, Tensor | str) or not isinstance(y, Sequence):
        raise ConfigError(f"y is {describe(y)}; give class numbers (B,) as integers, or a list of names")
    return torch.tensor([parse_class(str(label), model.class_names, "y") for label in y], dtype=torch.long)


def check_images(model: Model, x: Tensor, labels: Tensor) -> None:
    """Raises ConfigError for images or labels that do not fit the model."""
    if not isinstance(x, Tensor) or tuple(x.shape[1:]) != model.image_shape or not x.is_floating_point():
        shape = ", ".join(map(str, model.image_shape))
        raise ConfigError(f"x is {describe(x)}; give float images (B, {shape})")
    if labels.shape != x.shape[:1]:
        raise ConfigError(f"y has shape {tuple(labels.shape)} for {len(x)} images; give one class per image")
    check_range("x", x)
    if not len(x):
        return
    low, high, count = int(labels.min()), int(labels.max()), len(model.class_names)
    if low < 0 or high >= count:
        raise ConfigError(f"y has classes from {low} to {high}; the model has {count}")


@contextlib.contextmanager
def argument_errors() -> Iterator[None]:
    """Errors name arguments instead of flags."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(name_arguments(str(error))) from None
    except (AbsentError, DataError) as error:
        raise type(error)(name_arguments(str(error))) from None


def name_arguments(message: str) -> str:
    """`--sgld-steps -1 is too small` -> `sgld_steps -1 is too small`."""
    return re.sub(r"--([a-z][a-z-]*[a-z])", lambda flag: FLAG_NAMES.get(flag[1], flag[1].replace("-", "_")), message)
