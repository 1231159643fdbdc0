"""What is to be sampled: the plan, the classes, the indices; and the protocol that travels with the samples."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rjem_cli import __version__
from rjem_cli.config import ChainOptions, GenerateConfig, LangevinConfig, TrainConfig
from rjem_cli.engine.chains.pipeline import SamplePlan, plan_of
from rjem_cli.engine.model.checkpoint import Checkpoint
from rjem_cli.engine.runtime import Runtime
from rjem_cli.errors import ConfigError, did_you_mean

UNCONDITIONAL = "none"
LARGEST_WATCHED = 250  # chains of `rjem langevin` that go through the network at once
BLOCK_SIZE = {"cpu": 50, "cuda": 100, "mps": 100}


@dataclass(frozen=True)
class SampleRequest:
    """Samples first .. last - 1 of `count`. Sample i has the seed `seed + i` and the i-th of `classes` in turn;
    `block_size` of them go through the network at once."""

    plan: SamplePlan
    classes: tuple[int, ...]
    class_names: tuple[str, ...]
    seed: int
    count: int
    block_size: int
    shard: tuple[int, int] = (0, 1)

    @property
    def first(self) -> int:
        return self.shard[0] * self.count // self.shard[1]

    @property
    def last(self) -> int:
        return (self.shard[0] + 1) * self.count // self.shard[1]

    def indices(self) -> Tensor:
        return torch.arange(self.first, self.last)

    def labels(self, indices: Tensor) -> Tensor:
        """The classes that starts are drawn from, and that conditional chains aim at, int64 like `indices`."""
        return torch.tensor(self.classes)[indices % len(self.classes)]

    def row(self, index: int) -> tuple[str, int, str, int]:
        """(file, label, class, seed) of one sample; label -1 for samples of no class."""
        label = self.classes[index % len(self.classes)] if self.plan.conditional else -1
        name = self.class_names[label] if self.plan.conditional else UNCONDITIONAL
        return f"{index:06d}.png", label, name, self.seed + index


def settle_plan(options: ChainOptions, trained: TrainConfig, mode: str = "energy") -> SamplePlan:
    """The checkpoint's own way to sample, changed by what was asked for."""
    conditional = options.classes != UNCONDITIONAL
    if not conditional and mode != "energy":
        raise ConfigError(f"--class none has nothing to attack towards; --mode {mode} needs classes")
    plan = plan_of(trained, mode, conditional)
    names = ("sgld_steps", "noise_std", "attack_eps", "attack_steps", "contrast")
    asked = {name: value for name in names if (value := getattr(options, name, None)) is not None}
    inner_step = trained.sgld_step_size if options.sgld_step_size is None else options.sgld_step_size
    inner_steps = trained.inner_steps if options.inner_steps is None else options.inner_steps
    return replace(plan, sgld_step_size=inner_step * inner_steps, temperature=options.temperature, **asked)


def settle_request(
    config: GenerateConfig | LangevinConfig, trained: TrainConfig, class_names: Sequence[str], device_type: str = "cpu"
) -> SampleRequest:
    """Raises ConfigError for a class, a shard or a mode that cannot be meant."""
    shard, mode, block_size = (0, 1), "energy", min(config.count, LARGEST_WATCHED)
    if isinstance(config, GenerateConfig):
        shard, mode = parse_shard(config.shard), config.mode
        block_size = config.block_size or BLOCK_SIZE[device_type]
    if shard[1] > config.count:
        raise ConfigError(f"--shard {shard[0]}/{shard[1]}: {config.count} samples do not make {shard[1]} parts")
    return SampleRequest(
        settle_plan(config, trained, mode),
        tuple(parse_classes(config.classes, class_names)),
        tuple(class_names),
        config.seed,
        config.count,
        block_size,
        shard,
    )


def parse_shard(text: str | None) -> tuple[int, int]:
    """`2/8` -> (2, 8); None is the whole. Raises ConfigError."""
    if text is None:
        return 0, 1
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
    if not found or not int(found[1]) < int(found[2]):
        raise ConfigError(f"--shard {text!r}: give i/k with i from 0 to k - 1, such as 0/4")
    return int(found[1]), int(found[2])


def parse_classes(text: str, class_names: Sequence[str]) -> list[int]:
    """`all`, or names and numbers with commas between; a name wins over a number, `all` over a class of that name.
    `none` draws starts from all classes. Raises ConfigError with the nearest name."""
    if text in ("all", UNCONDITIONAL):
        return list(range(len(class_names)))
    return [parse_class(word.strip(), class_names, "--class") for word in text.split(",")]


def parse_class(word: str, class_names: Sequence[str], flag: str) -> int:
    """One name or number. Raises ConfigError with the nearest name."""
    if word in class_names:
        return class_names.index(word)
    if word.isdecimal() and int(word) < len(class_names):
        return int(word)
    raise ConfigError(f"{flag} {word!r} is unknown to this checkpoint; {did_you_mean(word, class_names)}")


def describe_request(request: SampleRequest, checkpoint: Checkpoint, init: str, runtime: Runtime) -> dict[str, Any]:
    """The protocol as plain data. `request` is a digest of all that decides the bytes of a sample: a call that was
    interrupted goes on only where it is the same."""
    info = checkpoint.info
    index, parts = request.shard
    decisive = {
        "checkpoint_sha256": checkpoint.sha256(),
        "plan": asdict(request.plan),
        "init": init,
        "classes": [request.class_names[label] for label in request.classes],
        "seed": request.seed,
        "block_size": request.block_size,
        "device_kind": f"{runtime.device.type} {runtime.precision}",
        **({"shard": f"{index}/{parts}", "count": request.count} if parts > 1 else {}),
    }
    return {
        "rjem": __version__,
        "request": digest_of(decisive),
        **decisive,
        "checkpoint": {"path": str(checkpoint.path), "step": info.step},
        "config_sha256": digest_of(info.config.to_dict()),
        "dataset": {"name": info.data_name, "train_digest": info.data_digest},
        "gradient_steps_per_sample": request.plan.gradient_steps,
        "count": request.count,
        "samples": [request.first, request.last],
        "selection": "none",
        "device": runtime.describe(),
    }


def digest_of(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
