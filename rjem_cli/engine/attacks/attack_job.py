"""One `rjem attack`: what is attacked and how, and the results as they come."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rjem_cli.config import AttackConfig
from rjem_cli.engine.attacks.autoattack import Cost, autoattack_dataset, check_autoattack, estimate_cost
from rjem_cli.engine.attacks.eval_data import AttackDataset, attack_targets, load_eval_images, resolve_radii
from rjem_cli.engine.attacks.robustness import (
    AttackPlan,
    AttackProgress,
    CleanResult,
    RadiusResult,
    attack_dataset,
    evaluate_clean,
)
from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.callbacks import Log, noop
from rjem_cli.engine.data.images import parse_class
from rjem_cli.engine.gradients import Logits
from rjem_cli.engine.models.checkpoint import Checkpoint
from rjem_cli.engine.models.custom_model import load_network
from rjem_cli.engine.runtime import Runtime, start_runtime
from rjem_cli.engine.timing import find_batch_size, time_pass


@dataclass(frozen=True)
class AttackJob:
    """Everything that is known before the first step. Radii in model units, ascending; `dataset` holds some of the
    `total` images of `source`."""

    config: AttackConfig
    checkpoint: Checkpoint
    runtime: Runtime
    logits_of: Logits
    plan: AttackPlan
    radii: tuple[float, ...]
    dataset: AttackDataset
    source: str
    total: int
    batches: BatchSizer

    def evaluate_clean(self) -> CleanResult:
        return evaluate_clean(self.logits_of, self.plan, self.dataset, self.runtime.device, self.batches)

    def estimate_cost(self, clean: CleanResult) -> Cost:
        """The most that AutoAttack can cost."""
        return estimate_cost(
            self.logits_of, self.dataset, clean, len(self.radii), self.runtime.device, self.config.batch_size
        )

    def estimate_seconds(self) -> float:
        """If no image breaks, from the time of one batch."""
        if self.config.standard:
            return self.estimate_cost(self.evaluate_clean()).seconds
        device, shape = self.runtime.device, self.dataset.images.image_shape
        batch_size = min(find_batch_size(self.logits_of, shape, self.batches, device), len(self.dataset))
        passes = math.ceil(len(self.dataset) / batch_size) * (1 + self.plan.passes * len(self.radii))
        return passes * time_pass(self.logits_of, shape, batch_size, device)

    def run(self, clean: CleanResult, on_progress: AttackProgress = noop, log: Log = noop) -> Iterator[RadiusResult]:
        """One result per radius, the smallest first. `log` is told of AutoAttack parts that an earlier call did."""
        if not self.config.standard:
            return attack_dataset(
                self.logits_of,
                self.plan,
                self.dataset,
                clean,
                self.radii,
                device=self.runtime.device,
                batches=self.batches,
                on_progress=on_progress,
            )
        return autoattack_dataset(
            self.logits_of,
            self.dataset,
            clean,
            self.radii,
            self.plan.norm,
            checkpoint_sha256=self.checkpoint.sha256,
            runtime=self.runtime,
            batch_size=self.config.batch_size,
            on_progress=on_progress,
            log=log,
        )


def prepare_attack(config: AttackConfig, path: Path | None, log: Log = noop) -> AttackJob:
    """Read checkpoint and images. `log` is told if batches must be smaller. Raises ConfigError, AbsentError or
    DataError."""
    runtime = start_runtime(config, reproducible=True)
    checkpoint = load_network(config, path, runtime.device)
    info = checkpoint.info
    if config.standard:
        check_autoattack(len(info.class_names))
    target = None if config.target is None else parse_class(config.target, info.class_names, "--target")
    norm, radii = resolve_radii(config, info)
    images = load_eval_images(config, info)
    dataset = attack_targets(images, target, config.targeted is not None, config.seed)
    plan = AttackPlan(
        norm=norm,
        method=config.method,
        steps=config.steps,
        step_size=config.step_size,
        loss=config.loss,
        restarts=config.restarts,
        start=config.start,
        iterate=config.iterate,
        targeted=dataset.targets is not None,
    )
    logits_of, batches = runtime.frozen(checkpoint.model), BatchSizer(config.batch_size, log)
    return AttackJob(config, checkpoint, runtime, logits_of, plan, radii, dataset, images.source, images.total, batches)
