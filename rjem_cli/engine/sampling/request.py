"""What to sample: the plan, the classes and the indices; and the protocol that is stored with the samples."""

import re
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rjem_cli import __version__
from rjem_cli.config.common import check_radius
from rjem_cli.config.sampling import GenerateConfig, LangevinConfig
from rjem_cli.config.training import PAPER_SAMPLING, TrainConfig
from rjem_cli.engine.data.images import UNCONDITIONAL, parse_classes
from rjem_cli.engine.inference import Model
from rjem_cli.engine.models.checkpoint import CheckpointInfo
from rjem_cli.engine.sampling.pipeline import SamplePlan
from rjem_cli.engine.sampling.sgld import SgldParameters
from rjem_cli.errors import ConfigError
from rjem_cli.files import json_digest

SampleConfig = GenerateConfig | LangevinConfig
LABEL_COLUMNS = ("file", "label", "class", "seed")  # of `SampleRequest.row`
BLOCK_SIZE = {"cpu": 50, "cuda": 100, "mps": 100}


@dataclass(frozen=True)
class SampleRequest:
    """Samples first .. stop - 1 of `count`. Sample i has the seed `seed + i` and the class `classes[i % len(classes)]`.
    The network sees `block_size` samples at once. `shard` is (index, number of shards)."""

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
    def stop(self) -> int:
        return (self.shard[0] + 1) * self.count // self.shard[1]

    @property
    def block_count(self) -> int:
        """Blocks that go through the network. They are aligned to the seed, so their ends may be dropped."""
        return -(-(self.seed + self.stop) // self.block_size) - (self.seed + self.first) // self.block_size

    @property
    def gradient_steps(self) -> int:
        """Gradient steps of single images, in complete blocks."""
        return self.plan.gradient_steps * self.block_count * self.block_size

    def indices(self) -> Tensor:
        return torch.arange(self.first, self.stop)

    def labels(self, index_B: Tensor) -> Tensor:
        """The classes of starts and of conditional chains, int64 (B,)."""
        return torch.tensor(self.classes)[index_B % len(self.classes)]

    def row(self, index: int) -> tuple[str, int, str, int]:
        """(file, label, class, seed) of one sample. The label is -1 for samples without a class."""
        label = self.classes[index % len(self.classes)] if self.plan.conditional else -1
        name = self.class_names[label] if self.plan.conditional else UNCONDITIONAL
        return f"{index:06d}.png", label, name, self.seed + index


def resolve_plan(config: SampleConfig, trained: TrainConfig) -> SamplePlan:
    """The checkpoint's own plan with the options that are set. Raises ConfigError for options that conflict."""
    mode = config.mode if isinstance(config, GenerateConfig) else "energy"
    conditional = config.classes != UNCONDITIONAL
    if not conditional and mode != "energy":
        raise ConfigError(f"--class none has no class to attack towards; --mode {mode} needs classes")
    names = ("sgld_steps", "attack_eps", "attack_steps", "attack_confidence", "contrast", "prior_temperature")
    given = {name: value for name in names if (value := getattr(config, name, None)) is not None}
    if isinstance(config, GenerateConfig) and config.paper:
        trained = replace(trained, **asdict(PAPER_SAMPLING))
    plan = SamplePlan.from_config(trained, mode, conditional)
    plan = replace(plan, sgld=SgldParameters.for_sampling(config, trained), **given)
    if plan.has_attack:
        check_radius("--attack-eps", plan.attack_eps, plan.norm)
    return plan


def resolve_request(config: SampleConfig, info: CheckpointInfo, device_type: str) -> SampleRequest:
    """Raises ConfigError for an invalid class, shard or mode."""
    shard = parse_shard(config.shard if isinstance(config, GenerateConfig) else None)
    if shard[1] > config.count:
        raise ConfigError(f"--shard {shard[0]}/{shard[1]}: {config.count} samples cannot be split into {shard[1]}")
    plan, classes = resolve_plan(config, info.config), tuple(parse_classes(config.classes, info.class_names))
    block_size = config.block_size or BLOCK_SIZE[device_type]
    return SampleRequest(plan, classes, info.class_names, config.seed, config.count, block_size, shard)


def parse_shard(text: str | None) -> tuple[int, int]:
    """`2/8` -> (2, 8); None -> (0, 1), all samples. Raises ConfigError."""
    if text is None:
        return 0, 1
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
    if not match or not int(match[1]) < int(match[2]):
        raise ConfigError(f"--shard {text!r}: give i/k with i from 0 to k - 1, such as 0/4")
    return int(match[1]), int(match[2])


def describe_request(request: SampleRequest, model: Model, init: str, init_sha256: str | None) -> dict[str, Any]:
    """The protocol as plain data. `request` is a digest of everything that decides the bytes of a sample; only a call
    with the same digest resumes. `init_sha256` is the digest of starts that were read from files."""
    checkpoint, info = model.checkpoint, model.info
    index, shards = request.shard
    decisive = {
        "checkpoint_sha256": checkpoint.sha256,
        "plan": asdict(request.plan),
        "init": init,
        "init_sha256": init_sha256,
        "classes": [request.class_names[label] for label in request.classes],
        "seed": request.seed,
        "block_size": request.block_size,
        "arithmetic": model.runtime.arithmetic,
        **({"shard": f"{index}/{shards}", "count": request.count} if shards > 1 else {}),
    }
    return {
        "rjem": __version__,
        "request": json_digest(decisive),
        **decisive,
        "checkpoint": {"step": info.step},  # no path, so that a copy makes the same bytes
        "config_sha256": info.config_sha256,
        "dataset": {
            "name": info.data_name,
            "train_digest": info.data_digest,
            "data": info.config.data,
            "test_data": info.config.test_data,
            "image_size": info.config.image_size,
        },
        "gradient_steps_per_sample": request.plan.gradient_steps,
        "count": request.count,
        "samples": [request.first, request.stop],
        "selection": "none",
        "device": model.runtime.describe(),
    }
