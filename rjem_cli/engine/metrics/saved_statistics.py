"""Statistics of features in a file: mu and sigma, as pytorch-fid, TTUR, EDM and ADM read them, and rjem's protocol of
how they were made."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rjem_cli import __version__
from rjem_cli.config.common import STREAM
from rjem_cli.config.scoring import EvalConfig
from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.callbacks import Log, OnProgress, noop
from rjem_cli.engine.data.collection import ImageCollection
from rjem_cli.engine.metrics.distances import fit_statistics
from rjem_cli.engine.metrics.extractors import BATCH_SIZE, GPU_BATCH_SIZE
from rjem_cli.engine.metrics.feature_choice import FeatureChoice, choose_features, load_extractor
from rjem_cli.engine.metrics.features import load_features, split_chunks
from rjem_cli.engine.metrics.reference import Reference, Statistics, read_reference
from rjem_cli.engine.metrics.samples import read_samples
from rjem_cli.engine.runtime import scoring_runtime
from rjem_cli.errors import ConfigError
from rjem_cli.files import write_atomically


@dataclass(frozen=True)
class StatisticsPlan:
    """The images, some of `reference`, and the features of which statistics are saved."""

    config: EvalConfig
    reference: Reference
    images: ImageCollection
    choice: FeatureChoice


def plan_statistics(config: EvalConfig, reference: Reference) -> StatisticsPlan:
    """Raises ConfigError if the images are too few, or if `reference` already holds statistics."""
    if reference.images is None:
        raise ConfigError(f"--save-stats: {reference.name} holds statistics already; give images")
    images, choice = reference.images.spread(config.num), choose_features(config.features, reference)
    if len(images) <= choice.dimensions and not config.allow_few:
        raise ConfigError(
            f"--save-stats: {len(images)} images are too few for {choice.dimensions} features; "
            f"use {choice.dimensions + 1} or more, or add --allow-few"
        )
    return StatisticsPlan(config, reference, images, choice)


def save_statistics(
    plan: StatisticsPlan, path: Path, log: Log = noop, on_progress: OnProgress = noop
) -> dict[str, Any]:
    """Compute and write the statistics. Returns their protocol. `on_progress` may raise to stop. Raises AbsentError
    without the network's weights, RjemError if the file cannot be written."""
    config, reference, images, choice = plan.config, plan.reference, plan.images, plan.choice
    runtime = scoring_runtime(config.device)
    extractor = load_extractor(choice, reference, runtime, on_progress)
    chunks = split_chunks(images.pixels, extractor, images.name)
    batches = BatchSizer(config.batch_size or BATCH_SIZE.get(runtime.device.type, GPU_BATCH_SIZE), log)
    features = load_features(
        chunks, extractor, runtime.device, batches, lambda done: on_progress("features", done, len(images))
    )
    protocol = {
        "rjem": __version__,
        "images": {"name": reference.name, "count": len(images), "sha256": images.digest()},
        "features": {**extractor.identity, **extractor.about, "arithmetic": "float32", "reason": choice.reason},
    }
    write_statistics(path, fit_statistics(features.features), protocol)
    return protocol


def write_statistics(path: Path, statistics: Statistics, protocol: dict[str, Any]) -> None:
    content = io.BytesIO()
    np.savez(content, mu=statistics.mu, sigma=statistics.sigma, protocol=np.array(json.dumps(protocol)))
    write_atomically(path, content.getvalue())


def read_subject(config: EvalConfig, locations: Sequence[str], stdin: Callable[[], BinaryIO]) -> Reference:
    """The images of one location as `read_reference` reads them, else as `read_samples` does. Raises as these do."""
    if len(locations) == 1 and locations[0] != STREAM:
        return read_reference(locations[0], config.protocol, image_size=config.image_size)
    samples = read_samples(locations, stdin, config.image_size)
    return Reference(samples.name, samples)
