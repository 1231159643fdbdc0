"""Samples from a checkpoint, batch by batch. Sample i depends on seed + i only, up to the last bits,
which the size of the batches can change."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rjem_cli import __version__
from rjem_cli.config import GenerateConfig, TrainConfig
from rjem_cli.engine.chains.pipeline import SamplePlan, plan_of, prior_samples, run_plan
from rjem_cli.engine.data.images import to_pixels
from rjem_cli.engine.data.load import load_splits
from rjem_cli.engine.model.checkpoint import Checkpoint, CheckpointInfo
from rjem_cli.engine.model.prior import ClassGaussianPrior, cached_prior, load_prior
from rjem_cli.engine.runtime import Runtime
from rjem_cli.errors import AbsentError, ConfigError, RjemError, did_you_mean


class SampleBatch(NamedTuple):
    """Samples first .. first + B: pixels and the prior draws they began as, uint8 (B, C, H, W) on the host, and labels
    (B,)."""

    first: int
    pixels: Tensor
    starts: Tensor
    labels: Tensor


def settle_plan(config: GenerateConfig, trained: TrainConfig) -> SamplePlan:
    """The checkpoint's own way to sample, changed by what was asked for."""
    plan = plan_of(trained, config.mode)
    asked = {
        name: getattr(config, name)
        for name in ("sgld_steps", "noise_std", "attack_eps", "attack_steps", "contrast")
        if getattr(config, name) is not None
    }
    inner_step = trained.sgld_step_size if config.sgld_step_size is None else config.sgld_step_size
    inner_steps = trained.inner_steps if config.inner_steps is None else config.inner_steps
    return replace(plan, sgld_step_size=inner_step * inner_steps, **asked)


def parse_classes(text: str, class_names: Sequence[str]) -> list[int]:
    """`all`, or names and numbers with commas between; a name wins over a number, `all` over a class of that name.
    Raises ConfigError with the nearest name."""
    if text == "all":
        return list(range(len(class_names)))
    labels = []
    for word in (part.strip() for part in text.split(",")):
        if word in class_names:
            labels.append(class_names.index(word))
        elif word.isdecimal() and int(word) < len(class_names):
            labels.append(int(word))
        else:
            raise ConfigError(f"--class {word!r} is unknown to this checkpoint; {did_you_mean(word, class_names)}")
    return labels


def prior_of(info: CheckpointInfo, data: str | None) -> ClassGaussianPrior:
    """The prior of a checkpoint's training images: from the cache, else fitted again. Raises AbsentError where the
    images are not there."""
    prior = cached_prior(info.data_digest)
    if prior is not None:
        return prior
    options = replace(info.config, data=data) if data else info.config
    try:
        images = load_splits(options).train
    except RjemError as error:
        raise AbsentError(
            f"the prior must be fitted again and its images cannot be read ({error}); say where they are with --data"
        ) from None
    digest = images.digest()
    if digest != info.data_digest:
        raise AbsentError(
            f"{options.data or options.dataset} is not what this checkpoint was trained on; "
            "say where that is with --data"
        )
    return load_prior(images, digest)


def generate(
    logits_of: Callable[[Tensor], Tensor],
    prior: ClassGaussianPrior,
    plan: SamplePlan,
    classes: Sequence[int],
    count: int,
    *,
    seed: int,
    batch_size: int,
    device: torch.device,
) -> Iterator[SampleBatch]:
    """`count` samples, their classes in turn. `logits_of` must be frozen; it and `prior` live on `device`."""
    for first in range(0, count, batch_size):
        indices = torch.arange(first, min(first + batch_size, count))
        labels = torch.tensor(classes)[indices % len(classes)]
        seeds = (seed + indices).to(device)
        starts = prior_samples(prior, labels, seeds)
        samples = run_plan(plan, logits_of, starts, labels.to(device), seeds)
        yield SampleBatch(first, to_pixels(samples).cpu(), to_pixels(starts).cpu(), labels)


def describe_samples(
    checkpoint: Checkpoint, plan: SamplePlan, classes: Sequence[int], config: GenerateConfig, runtime: Runtime
) -> dict[str, Any]:
    """The protocol that travels with the samples, as plain data."""
    info = checkpoint.info
    digest = hashlib.sha256(checkpoint.path.read_bytes()).hexdigest()
    return {
        "rjem": __version__,
        "checkpoint": {"path": str(checkpoint.path), "sha256": digest, "step": info.step},
        "dataset": {"name": info.data_name, "train_digest": info.data_digest},
        "plan": asdict(plan),
        "gradient_steps_per_sample": plan.gradient_steps,
        "count": config.count,
        "seed": config.seed,
        "batch_size": config.batch_size,
        "classes": [info.class_names[label] for label in classes],
        "selection": "none",
        "device": runtime.describe(),
    }
