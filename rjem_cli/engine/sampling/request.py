"""What to sample: the plan, the classes, the indices; and the protocol that is stored with the samples."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rjem_cli import __version__
from rjem_cli.config import GenerateConfig, LangevinConfig, TrainConfig, check_radius
from rjem_cli.engine.data.class_names import UNCONDITIONAL, parse_classes
from rjem_cli.engine.models.checkpoint import Checkpoint, CheckpointInfo, strip_paths
from rjem_cli.engine.runtime import Runtime
from rjem_cli.engine.sampling.pipeline import SamplePlan
from rjem_cli.errors import ConfigError

SampleConfig = GenerateConfig | LangevinConfig
LABEL_COLUMNS = ("file", "label", "class", "seed")  # of `SampleRequest.row`
BLOCK_SIZE = {"cpu": 50, "cuda": 100, "mps": 100}


@dataclass(frozen=True)
class SampleRequest:
    """Samples first .. last - 1 of `count`. Sample i has the seed `seed + i` and the class `classes[i % len(classes)]`;
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
        """Samples that go through the network, in whole blocks."""
        size, begin, end = self.block_size, self.seed + self.first, self.seed + self.last
        return (-(-end // size) - begin // size) * size

    def indices(self) -> Tensor:
        return torch.arange(self.first, self.last)

    def labels(self, indices: Tensor) -> Tensor:
        """The classes of starts and of conditional chains, int64 like `indices`."""
        return torch.tensor(self.classes)[indices % len(self.classes)]

    def row(self, index: int) -> tuple[str, int, str, int]:
        """(file, label, class, seed) of one sample; the label is -1 for samples without a class."""
        label = self.classes[index % len(self.classes)] if self.plan.conditional else -1
        name = self.class_names[label] if self.plan.conditional else UNCONDITIONAL
        return f"{index:06d}.png", label, name, self.seed + index


def resolve_plan(options: SampleConfig, trained: TrainConfig) -> SamplePlan:
    """The checkpoint's own plan, changed by the options that are set. Raises ConfigError."""
    mode = options.mode if isinstance(options, GenerateConfig) else "energy"
    conditional = options.classes != UNCONDITIONAL
    if not conditional and mode != "energy":
        raise ConfigError(f"--class none has no class to attack towards; --mode {mode} needs classes")
    names = ("sgld_steps", "noise_std", "attack_eps", "attack_steps", "contrast")
    given = {name: value for name in names if (value := getattr(options, name, None)) is not None}
    inner_step = trained.sgld_step_size if options.sgld_step_size is None else options.sgld_step_size
    inner_steps = trained.inner_steps if options.inner_steps is None else options.inner_steps
    plan = SamplePlan.from_config(trained, mode, conditional)
    plan = replace(plan, sgld_step_size=inner_step * inner_steps, temperature=options.temperature, **given)
    if plan.has_attack:
        check_radius("--attack-eps", plan.attack_eps, plan.norm)
    if not math.isfinite(plan.sgld_step_size):
        raise ConfigError("--sgld-step-size times --inner-steps is not finite; give smaller values")
    if options.langevin_noise:  # Eq. 1 with a / 2 for the step: the noise has variance a
        plan = replace(plan, noise_std=math.sqrt(2 * plan.sgld_step_size), grad_clip=None)
    return plan


def resolve_request(options: SampleConfig, info: CheckpointInfo, device_type: str) -> SampleRequest:
    """Raises ConfigError for an invalid class, shard or mode."""
    shard = parse_shard(options.shard if isinstance(options, GenerateConfig) else None)
    if shard[1] > options.count:
        raise ConfigError(f"--shard {shard[0]}/{shard[1]}: {options.count} samples cannot be split into {shard[1]}")
    return SampleRequest(
        resolve_plan(options, info.config),
        tuple(parse_classes(options.classes, info.class_names)),
        info.class_names,
        options.seed,
        options.count,
        options.block_size or BLOCK_SIZE[device_type],
        shard,
    )


def parse_shard(text: str | None) -> tuple[int, int]:
    """`2/8` -> (2, 8); None -> (0, 1), everything. Raises ConfigError."""
    if text is None:
        return 0, 1
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
    if not found or not int(found[1]) < int(found[2]):
        raise ConfigError(f"--shard {text!r}: give i/k with i from 0 to k - 1, such as 0/4")
    return int(found[1]), int(found[2])


def describe_request(
    request: SampleRequest, checkpoint: Checkpoint, init: str, init_sha256: str | None, runtime: Runtime
) -> dict[str, Any]:
    """The protocol as plain data. `request` is a digest of everything that decides the bytes of a sample; a call
    resumes only if it is the same. `init_sha256` is the digest of starts that were read from files."""
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
        "config_sha256": digest_of(strip_paths(info.config).to_dict()),
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
