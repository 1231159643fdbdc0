"""One call of `rjem eval` on samples: what is compared, by whose features, and the scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from rjem_cli.config import STREAM, EvalConfig
from rjem_cli.engine.data.collection import ImageCollection, read_collection, read_stream
from rjem_cli.engine.quality.choose import Choice, Watch, build, check_fits, choose, described
from rjem_cli.engine.quality.extractors import BATCH_SIZE, GPU_BATCH_SIZE, Extractor
from rjem_cli.engine.quality.features import Features, chunks_of, extract, images_per_second, missing_images
from rjem_cli.engine.quality.gates import Gate, check_names, parse_gates
from rjem_cli.engine.quality.plan import Labels, Plan, Sizes, labels_of, make_plan, parse_metrics, renamed
from rjem_cli.engine.quality.reference import Reference, default_reference, read_reference
from rjem_cli.engine.quality.score import PerClass, Scores, Subject, score
from rjem_cli.engine.runtime import Runtime, start_runtime
from rjem_cli.errors import AbsentError, ConfigError

Chunks = list[tuple[Path, Tensor]]
REFERENCE_PART = {"standard": "train", "jempp": "all"}


@dataclass(frozen=True)
class Inputs:
    """What is compared, and what is to be known of it, before any network is there."""

    config: EvalConfig
    samples: ImageCollection
    of: int
    reference: Reference
    labels: Labels
    gates: list[Gate]
    runtime: Runtime


@dataclass(frozen=True)
class EvalJob:
    """All that is settled before features are computed. `real_chunks` is None where the reference is statistics."""

    inputs: Inputs
    choice: Choice
    plan: Plan
    extractor: Extractor
    chunks: Chunks
    real_chunks: Chunks | None

    @property
    def batch_size(self) -> int:
        return self.inputs.config.batch_size or BATCH_SIZE.get(self.inputs.runtime.device.type, GPU_BATCH_SIZE)

    @property
    def missing(self) -> int:
        """Images whose features are not kept yet."""
        return missing_images(self.chunks) + missing_images(self.real_chunks or [])

    def images_per_second(self) -> float:
        return images_per_second(
            self.inputs.samples.pixels, self.extractor, self.inputs.runtime.device, self.batch_size
        )


def read_inputs(config: EvalConfig, location: str, stdin: Callable[[], BinaryIO]) -> Inputs:
    """Read samples and reference, every image of them, so that a bad one is known before the work. Raises ConfigError,
    AbsentError or DataError."""
    parse_metrics(config.metrics)
    gates = parse_gates(config.require)
    runtime = start_runtime(config.device, "fp32", reproducible=True)
    everything = read_stream(stdin(), "standard input") if location == STREAM else read_collection(location)
    samples = everything.first(config.num)
    reference = reference_of(config, samples)
    return Inputs(config, samples, len(everything), reference, labels_of(samples, reference), gates, runtime)


def reference_of(config: EvalConfig, samples: ImageCollection) -> Reference:
    text = config.reference or default_reference(samples.meta)
    if config.protocol == "jempp":
        if text.endswith((":train", ":test")) and config.reference:
            raise ConfigError(f"--protocol jempp compares with train and test, --reference {text} with one part")
        text = text.removesuffix(":train")
    own_test = ((samples.meta or {}).get("dataset") or {}).get("test_data") if config.reference is None else None
    return read_reference(text, REFERENCE_PART[config.protocol], own_test)


def plan_scores(inputs: Inputs) -> tuple[Choice, Plan]:
    """Whose features, and which scores. Raises ConfigError for a network or a condition that cannot be meant,
    AbsentError for a file that is not there, DataError for too few images."""
    choice = choose(inputs.config.features, inputs.reference)
    return choice, plan_for(inputs, choice)


def plan_for(inputs: Inputs, choice: Choice) -> Plan:
    images = inputs.reference.images
    same_shape = images is not None and images.image_shape == inputs.samples.image_shape
    sizes = Sizes(len(inputs.samples), None if images is None else len(images), same_shape)
    plan = make_plan(inputs.config, choice, sizes, inputs.labels)
    check_names(inputs.gates, plan.scores, lambda name: renamed(name, choice.suffix))
    return plan


def prepare(
    inputs: Inputs, choice: Choice, plan: Plan, watch: Watch, should_stop: Callable[[], bool]
) -> EvalJob | None:
    """Fetch, load or train the network. None if `should_stop` became true. Raises AbsentError for weights that cannot
    be had, ConfigError or DataError for what does not fit."""
    samples, reference = inputs.samples, inputs.reference
    try:
        extractor = build(choice, reference, inputs.runtime, watch, should_stop)
    except AbsentError as error:
        if inputs.config.features != "auto" or reference.statistics is not None:
            raise
        choice = described("judge", f"auto: {error}")
        plan = plan_for(inputs, choice)
        extractor = build(choice, reference, inputs.runtime, watch, should_stop)
    if extractor is None:
        return None
    check_fits(extractor, choice, samples, reference)
    real_chunks = None
    if reference.images is not None:
        real_chunks = chunks_of(reference.images.pixels, extractor, reference.name)
    return EvalJob(inputs, choice, plan, extractor, chunks_of(samples.pixels, extractor, samples.name), real_chunks)


def evaluate(job: EvalJob, watch: Watch) -> tuple[Subject, Scores, PerClass]:
    """Features of samples and reference, then the scores. Raises DataError for one that is not finite."""
    inputs, device = job.inputs, job.inputs.runtime.device

    def features_of(chunks: Chunks, phase: str) -> Features:
        total = sum(len(part) for _, part in chunks)
        watch(phase, 0, total)
        return extract(chunks, job.extractor, device, job.batch_size, lambda done: watch(phase, done, total))

    real = None if job.real_chunks is None else features_of(job.real_chunks, "features of the reference")
    generated = features_of(job.chunks, "features of the samples")
    subject = Subject(
        inputs.config,
        inputs.samples,
        inputs.reference,
        inputs.labels,
        job.extractor,
        device,
        generated,
        real,
    )
    scores, per_class = score(subject, job.plan, lambda done, total, metric: watch("scoring", done, total))
    return subject, scores, per_class
