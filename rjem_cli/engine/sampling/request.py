"""What is to be sampled: the plan, the classes, the indices; and the protocol that travels with the samples."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rjem_cli import __version__
from rjem_cli.config import ChainOptions, TrainConfig, check_radius
from rjem_cli.engine.chains.pipeline import SamplePlan, plan_of
from rjem_cli.engine.data.classes import UNCONDITIONAL, parse_classes
from rjem_cli.engine.model.checkpoint import Checkpoint, without_places
from rjem_cli.engine.runtime import Runtime
from rjem_cli.errors import ConfigError

LABEL_COLUMNS = ("file", "label", "class", "seed")  # of `SampleRequest.row`
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

    @property
    def computed(self) -> int:
        """How many samples go through the network: whole blocks."""
        size, begin, end = self.block_size, self.seed + self.first, self.seed + self.last
        return (-(-end // size) - begin // size) * size

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
    plan = replace(plan, sgld_step_size=inner_step * inner_steps, temperature=options.temperature, **asked)
    if plan.attacks:
        check_radius("--attack-eps", plan.attack_eps, plan.norm)
    if not math.isfinite(plan.sgld_step_size):
        raise ConfigError("--sgld-step-size times --inner-steps is not finite; give smaller ones")
    if options.proper:  # Eq. 1 with a / 2 for the step: the noise has variance a
        plan = replace(plan, noise_std=math.sqrt(2 * plan.sgld_step_size), grad_clip=None)
    return plan


def settle_request(
    options: ChainOptions,
    trained: TrainConfig,
    class_names: Sequence[str],
    device_type: str,
    *,
    count: int,
    seed: int,
    mode: str = "energy",
    shard_text: str | None = None,
) -> SampleRequest:
    """Raises ConfigError for a class, a shard or a mode that cannot be meant."""
    shard = parse_shard(shard_text)
    if shard[1] > count:
        raise ConfigError(f"--shard {shard[0]}/{shard[1]}: {count} samples do not make {shard[1]} parts")
    return SampleRequest(
        settle_plan(options, trained, mode),
        tuple(parse_classes(options.classes, class_names)),
        tuple(class_names),
        seed,
        count,
        options.block_size or BLOCK_SIZE[device_type],
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


def describe_request(
    request: SampleRequest, checkpoint: Checkpoint, init: str, init_sha256: str | None, runtime: Runtime
) -> dict[str, Any]:
    """The protocol as plain data. `request` is a digest of all that decides the bytes of a sample: a call that was
    interrupted goes on only where it is the same. `init_sha256` is the digest of starts that were read from files."""
    info = checkpoint.info
    index, parts = request.shard
    decisive = {
        "checkpoint_sha256": checkpoint.sha256(),
        "plan": asdict(request.plan),
        "init": init,
        "init_sha256": init_sha256,
        "classes": [request.class_names[label] for label in request.classes],
        "seed": request.seed,
        "block_size": request.block_size,
        "device_kind": runtime.arithmetic,
        **({"shard": f"{index}/{parts}", "count": request.count} if parts > 1 else {}),
    }
    return {
        "rjem": __version__,
        "request": digest_of(decisive),
        **decisive,
        "checkpoint": {"path": str(checkpoint.path), "step": info.step},
        "config_sha256": digest_of(without_places(info.config).to_dict()),
        "dataset": {
            "name": info.data_name,
            "train_digest": info.data_digest,
            "data": info.config.data,
            "test_data": info.config.test_data,
        },
        "gradient_steps_per_sample": request.plan.gradient_steps,
        "count": request.count,
        "samples": [request.first, request.last],
        "selection": "none",
        "device": runtime.describe(),
    }


def digest_of(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
