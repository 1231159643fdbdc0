"""One call of `rjem eval` on samples: what is compared, by whose features, and the scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from rjem_cli.config import STREAM, EvalConfig
from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.callbacks import OnProgress
from rjem_cli.engine.data.collection import ImageCollection, merge_collections, read_collection, read_stream
from rjem_cli.engine.metrics.eval_inputs import EvalInputs
from rjem_cli.engine.metrics.extractors import BATCH_SIZE, GPU_BATCH_SIZE, Extractor
from rjem_cli.engine.metrics.feature_choice import build, check_features, check_fits, choose, described
from rjem_cli.engine.metrics.features import Features, chunks_of, extract, images_per_second, missing_images
from rjem_cli.engine.metrics.judge import judge_config, trained_before
from rjem_cli.engine.metrics.reference import Reference, default_reference, names_builtin, own_test_data, read_reference
from rjem_cli.engine.metrics.registry import renamed
from rjem_cli.engine.metrics.requirements import Requirements, parse_requirements
from rjem_cli.engine.metrics.scores import EvalContext, PerClass, Scores
from rjem_cli.engine.metrics.selection import Plan, make_plan, parse_metrics, score
from rjem_cli.engine.metrics.weights import INCEPTION
from rjem_cli.engine.runtime import Runtime, scoring_runtime
from rjem_cli.errors import AbsentError, ConfigError, RjemError

Chunks = list[tuple[Path, Tensor]]


@dataclass(frozen=True)
class Inputs:
    """A case and its plan, before any network is there; `of`, how many samples there were to choose from."""

    case: EvalInputs
    of: int
    plan: Plan
    requirements: Requirements
    runtime: Runtime

    @property
    def judge_steps(self) -> str | None:
        """What training the judge means; None where none is to be trained."""
        reference = self.case.reference
        if self.case.choice.kind != "judge" or reference.splits is None:
            return None
        splits = reference.splits()
        if trained_before(splits, self.runtime.device) is not None:
            return None
        config = judge_config(splits)
        return f"WRN-{config.depth}-{config.width}, {config.steps} steps of {config.batch_size} images"


@dataclass(frozen=True)
class EvalJob:
    """All that is settled before features are computed. `real_chunks` is None where the reference is statistics."""

    inputs: Inputs
    extractor: Extractor
    chunks: Chunks
    real_chunks: Chunks | None
    batches: BatchSizer

    @property
    def missing(self) -> int:
        """Images whose features are not kept yet."""
        return missing_images(self.chunks) + missing_images(self.real_chunks or [])

    def images_per_second(self, watch: OnProgress) -> float:
        """Measured here and now, on the first samples."""
        pixels, device = self.inputs.case.samples.pixels, self.inputs.runtime.device
        rate = images_per_second(
            pixels, self.extractor, device, self.batches, lambda done: watch("measuring the speed", 0, 1)
        )
        watch("measuring the speed", 1, 1)
        return rate


@dataclass(frozen=True)
class SampleScores:
    """`scores` by name; `per_class` by kind and class."""

    subject: EvalContext
    scores: Scores
    per_class: PerClass


def read_inputs(config: EvalConfig, locations: Sequence[str], stdin: Callable[[], BinaryIO]) -> Inputs:
    """Read samples (one set, from one place or several) and reference, every image of them, and plan, so that what
    cannot be is known before the work. Raises ConfigError, AbsentError or DataError."""
    parse_metrics(config.metrics)
    check_features(config.features)
    requirements = parse_requirements(config.require)
    runtime = scoring_runtime(config.device)
    if len(locations) > 1 and (whole := next(filter(names_builtin, locations), None)):
        raise ConfigError(f"{whole} is a set of its own; several places are parts of one set of samples")
    everything = merge_collections([read_samples(location, stdin) for location in locations])
    samples = everything.spread(config.num)
    reference = reference_of(config, samples)
    case = EvalInputs(config, samples, reference, choose(config.features, reference))
    return Inputs(case, len(everything), checked_plan(case, requirements), requirements, runtime)


def read_samples(location: str, stdin: Callable[[], BinaryIO]) -> ImageCollection:
    """Also part of a built-in data set, `digits:test`: its scores are what samples can hope for."""
    if location == STREAM:
        return read_stream(stdin(), "standard input")
    if names_builtin(location):
        images = read_reference(location, "standard").images
        assert images is not None
        return images
    return read_collection(location)


def reference_of(config: EvalConfig, samples: ImageCollection) -> Reference:
    if config.reference is not None:
        return read_reference(config.reference, config.protocol)
    name = default_reference(samples, config.protocol)
    try:
        return read_reference(name, config.protocol, own_test_data(samples.meta))
    except AbsentError as error:
        raise AbsentError(f"{error} (the reference, as none was given with --reference)") from None


def checked_plan(case: EvalInputs, requirements: Requirements) -> Plan:
    check_fits(case.choice, case.samples, case.reference)
    plan = make_plan(case)
    requirements.check_names(plan.scores, lambda name: renamed(name, case.choice.suffix))
    return plan


def prepare(
    inputs: Inputs, say: Callable[[str], None], watch: OnProgress, train_watch: OnProgress, stop: Callable[[], bool]
) -> EvalJob | None:
    """Fetch, load or train the network. None if `stop` became true while a judge was trained. Raises AbsentError for
    weights that cannot be had, DataError for some that cannot be used."""
    reference = inputs.case.reference
    try:
        extractor = build(inputs.case.choice, reference, inputs.runtime, watch, train_watch, stop)
    except AbsentError as error:
        inputs = judged_instead(inputs, error)
        say(f"features by {inputs.case.choice.kind} ({inputs.case.choice.reason})")
        extractor = build(inputs.case.choice, reference, inputs.runtime, watch, train_watch, stop)
    if extractor is None:
        return None
    samples, real_chunks = inputs.case.samples, None
    if reference.images is not None:
        real_chunks = chunks_of(reference.images.pixels, extractor, reference.name)
    batch_size = inputs.case.config.batch_size or BATCH_SIZE.get(inputs.runtime.device.type, GPU_BATCH_SIZE)
    chunks = chunks_of(samples.pixels, extractor, samples.name)
    return EvalJob(inputs, extractor, chunks, real_chunks, BatchSizer(batch_size, say))


def judged_instead(inputs: Inputs, error: AbsentError) -> Inputs:
    """The same by a judge, if the choice was ours and a judge can do all that was asked for; else raises AbsentError
    with the remedy."""
    case = inputs.case
    if case.choice.kind != "inception":
        raise error
    remedy = f"try again, or download {INCEPTION.url} yourself and give it with --features PATH"
    if case.config.features != "auto":
        raise AbsentError(f"{error}; {remedy}, or take --features judge") from None
    try:
        case = replace(case, choice=described("judge", f"auto: {error}", case.reference))
        return replace(inputs, case=case, plan=checked_plan(case, inputs.requirements))
    except RjemError as unavailable_reason:
        raise AbsentError(f"{error}, and a judge cannot stand in ({unavailable_reason}); {remedy}") from None


def evaluate(job: EvalJob, watch: OnProgress) -> SampleScores:
    """Features of samples and reference, then the scores. Raises DataError for one that is not finite."""
    device = job.inputs.runtime.device

    def features_of(chunks: Chunks, phase: str) -> Features:
        total = sum(len(part) for _, part in chunks)
        watch(phase, 0, total)
        return extract(chunks, job.extractor, device, job.batches, lambda done: watch(phase, done, total))

    real = None if job.real_chunks is None else features_of(job.real_chunks, "features of the reference")
    generated = features_of(job.chunks, "features of the samples")
    subject = EvalContext(job.inputs.case, job.extractor, device, generated, real)
    scores, per_class = score(subject, job.inputs.plan, lambda done, total: watch("scoring", done, total))
    return SampleScores(subject, scores, per_class)
