"""Scores of a classifier: accuracy, calibration, robust accuracy, out-of-distribution detection, energies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rjem_cli.config import DATASETS, SYNTHETIC_SETS, DataOptions, EvalConfig, GenerateConfig
from rjem_cli.engine.attacks.robustness import (
    AttackPlan,
    AttackSetup,
    CleanResult,
    RadiusResult,
    attack_dataset,
    evaluate_clean,
)
from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.callbacks import Log, OnProgress, noop
from rjem_cli.engine.data.collection import read_collection
from rjem_cli.engine.data.downloads import DATASET_INFO, is_downloaded
from rjem_cli.engine.data.images import spread_indices, to_model
from rjem_cli.engine.data.load import load_part
from rjem_cli.engine.gradients import Logits
from rjem_cli.engine.metrics.accuracy import Accuracy
from rjem_cli.engine.metrics.calibration import Bin, calibration_error, reliability
from rjem_cli.engine.metrics.ood import SCORES, Outputs, auroc, compute_outputs, fit_shape, synthetic_set
from rjem_cli.engine.metrics.requirements import Requirements, check_finite, parse_requirements
from rjem_cli.engine.models.checkpoint import Checkpoint
from rjem_cli.engine.models.custom_model import load_network
from rjem_cli.engine.models.eval_images import AttackDataset, EvalImages, load_eval_images, resolve_radii
from rjem_cli.engine.runtime import Runtime, scoring_runtime
from rjem_cli.engine.sampling.generate import SampleJob, SampleSetup
from rjem_cli.engine.timing import find_batch_size, time_pass
from rjem_cli.errors import ConfigError, InterruptedRunError, RjemError, did_you_mean
from rjem_cli.paths import expand

BATCH_SIZE = 250
TEST, SAMPLES = "test images", "samples"


@dataclass(frozen=True)
class ClassifierJob:
    """Everything that is known before the network sees an image. Radii in model units, ascending; `ood_sets`, other
    images by name, uint8 in the model's shape; `samples`, None if none are drawn; `notes`, what is left out."""

    config: EvalConfig
    checkpoint: Checkpoint
    runtime: Runtime
    logits_of: Logits
    test: EvalImages
    plan: AttackPlan
    radii: tuple[float, ...]
    ood_sets: dict[str, Tensor]
    samples: SampleJob | None
    requirements: Requirements
    notes: list[str]
    batches: BatchSizer

    def score_names(self) -> list[str]:
        robust = [robust_name(eps) for eps in self.radii]
        aurocs = [auroc_name(kind, score) for kind in self.ood_sets for score in SCORES]
        return ["accuracy", "nll", "ece", *robust, *aurocs]

    def estimate_seconds(self) -> float:
        """If no image breaks, from the time of one batch."""
        count, shape, runtime = len(self.test.images), self.checkpoint.info.image_shape, self.runtime
        size = min(find_batch_size(self.logits_of, shape, self.batches, runtime.device), count)
        outputs = 3 * count + sum(map(len, self.ood_sets.values()))  # test images, before the attack and after it
        chains = 0.0
        if self.samples is not None:
            chains = self.samples.setup.estimate_seconds()
            outputs += len(self.samples.request.indices())
        seconds = time_pass(self.logits_of, shape, size, runtime.device)
        return (outputs + count * len(self.radii) * self.plan.passes) / size * seconds + chains

    def outputs(self, kind: str, x: Tensor, on_progress: OnProgress) -> Outputs:
        return compute_outputs(
            self.logits_of, x, self.runtime.device, self.batches, lambda done: on_progress(f"{kind}", done, len(x))
        )


@dataclass(frozen=True)
class ClassifierScores:
    """`scores` by name; `outputs` by kind of images; `correct`, bool (N,), of the test images; `clean`, the test images
    before the attack; `robust`, one result per radius; `notes`, what is left out."""

    scores: dict[str, float]
    outputs: dict[str, Outputs]
    correct: Tensor
    bins: list[Bin]
    clean: CleanResult
    robust: list[RadiusResult]
    notes: list[str]


def robust_name(eps: float) -> str:
    return f"robust_accuracy_{eps:g}"


def auroc_name(kind: str, score: str) -> str:
    return f"auroc_{kind}_{score}"


def prepare_classifier(config: EvalConfig, path: Path | None, log: Log = noop) -> ClassifierJob:
    """Read the checkpoint and all images. `log` is told if batches must be smaller. Raises ConfigError, AbsentError or
    DataError."""
    requirements = parse_requirements(config.require)
    runtime = scoring_runtime(config.device)
    checkpoint = load_network(config, path, runtime.device)
    norm, radii = resolve_radii(config, checkpoint.info)
    test = load_eval_images(config, checkpoint.info)
    notes: list[str] = []
    ood_sets = load_ood_sets(config, checkpoint, test)
    logits_of = runtime.frozen(checkpoint.model)
    samples = prepare_samples(config, checkpoint, logits_of, runtime, notes) if config.samples else None
    plan = AttackPlan(norm=norm, steps=config.steps, restarts=config.restarts)
    batches = BatchSizer(config.batch_size or BATCH_SIZE, log)
    job = ClassifierJob(
        config, checkpoint, runtime, logits_of, test, plan, radii, ood_sets, samples, requirements, notes, batches
    )
    requirements.check_names(job.score_names())
    return job


def load_ood_sets(config: EvalConfig, checkpoint: Checkpoint, test: EvalImages) -> dict[str, Tensor]:
    """By name. Raises ConfigError for two sets of one name, or one with the name of another row."""
    sets: dict[str, Tensor] = {}
    for kind in ood_kinds(config, checkpoint):
        name, pixels = load_ood_images(kind, test, config)
        if name in sets or name in (TEST, SAMPLES) or (name in SYNTHETIC_SETS and kind != name):
            raise ConfigError(f"--ood {kind}: another set is named {name} too; rename the folder")
        sets[name] = pixels
    return sets


def ood_kinds(config: EvalConfig, checkpoint: Checkpoint) -> list[str]:
    """Names and paths; `auto` downloads nothing, `none` is empty. Raises ConfigError for an unknown name."""
    if config.ood == "none":
        return []
    if config.ood == "auto":
        dataset = config.dataset or checkpoint.info.data_name
        return [*SYNTHETIC_SETS, *(name for name in DATASET_INFO if name != dataset and is_downloaded(name))]
    kinds = [kind.strip() for kind in config.ood.split(",")]
    if "" in kinds:
        raise ConfigError(f"--ood {config.ood!r} has an empty name; give names separated by commas, or none")
    for kind in kinds:
        if kind not in (*SYNTHETIC_SETS, *DATASETS) and not expand(kind).exists():
            hint = did_you_mean(kind, (*SYNTHETIC_SETS, *DATASETS))
            raise ConfigError(f"--ood {kind!r} is not a known set or a file; {hint}")
    return kinds


def load_ood_images(kind: str, test: EvalImages, config: EvalConfig) -> tuple[str, Tensor]:
    """(name, at most as many images as test images, in the model's shape)."""
    if kind in SYNTHETIC_SETS:
        return kind, synthetic_set(kind, test.images, config.seed)
    if kind in DATASETS:
        name, pixels = kind, load_part(DataOptions(dataset=kind), "test")[1].pixels
    else:
        name, pixels = Path(kind).name.split(".")[0], read_collection(kind).pixels
    return name, fit_shape(pixels[spread_indices(len(pixels), len(test.images))], test.images.image_shape)


def prepare_samples(
    config: EvalConfig, checkpoint: Checkpoint, logits_of: Logits, runtime: Runtime, notes: list[str]
) -> SampleJob | None:
    """The checkpoint's own samples, as `rjem generate` draws them; None, with a note, if their start is missing."""
    options = GenerateConfig(count=config.samples, seed=config.seed, data=config.data)
    try:
        return SampleSetup.build(options, checkpoint, logits_of, runtime).load_start()
    except RjemError as error:
        notes.append(f"no samples are drawn: {error}")
        return None


def evaluate_classifier(job: ClassifierJob, on_progress: OnProgress = noop) -> ClassifierScores:
    """Compute the outputs for all kinds of images, attack the test images, and score. Raises DataError for a score that
    is not finite."""
    images, notes = job.test.images, list(job.notes)
    outputs = {TEST: job.outputs(TEST, to_model(images.pixels), on_progress)}
    logits, labels = outputs[TEST].logits, images.labels
    confidence, predictions = logits.softmax(dim=1).max(dim=1)
    correct = predictions == labels
    bins = reliability(confidence, correct, job.config.bins)
    scores = {
        "accuracy": Accuracy(int(correct.sum()), len(correct)).value,
        "nll": float(F.cross_entropy(logits.double(), labels)),
        "ece": calibration_error(bins),
    }
    clean, robust = attack_test_images(job, on_progress)
    scores |= {robust_name(result.eps): float(result.robust(clean).double().mean()) for result in robust}
    strongest = robust[-1]
    attacked_x = strongest.x[clean.attacked]
    outputs[f"attacked, eps up to {strongest.eps:g}"] = job.outputs("attacked images", attacked_x, on_progress)
    if job.samples is not None:
        try:
            pixels = draw_samples(job, job.samples, on_progress)
            outputs[SAMPLES] = job.outputs(SAMPLES, to_model(pixels), on_progress)
        except InterruptedRunError:
            raise
        except RjemError as error:  # a diverging chain must not lose the other scores
            notes.append(f"no samples are shown: {error}")
    for kind, pixels in job.ood_sets.items():
        outputs[kind] = job.outputs(kind, to_model(pixels), on_progress)
        inside, outside = outputs[TEST].scores(), outputs[kind].scores()
        for score in SCORES:
            if inside[score].isfinite().all() and outside[score].isfinite().all():
                scores[auroc_name(kind, score)] = auroc(inside[score], outside[score])
            else:
                notes.append(f"no AUROC of {score} against {kind}: it is not finite for some images")
    check_finite(scores, str(job.checkpoint.path))
    return ClassifierScores(scores, outputs, correct, bins, clean, robust, notes)


def attack_test_images(job: ClassifierJob, on_progress: OnProgress) -> tuple[CleanResult, list[RadiusResult]]:
    """The test images before the attack, and a result per radius, the smallest first."""
    dataset = AttackDataset(job.test.images, job.test.indices, None, job.config.seed)
    setup = AttackSetup(job.logits_of, job.plan, dataset, job.runtime.device, job.batches)
    clean = evaluate_clean(setup)
    progress = lambda phase, done, total, state: on_progress(phase, done, total)  # noqa: E731
    return clean, list(attack_dataset(setup, clean, job.radii, progress))


def draw_samples(job: ClassifierJob, samples: SampleJob, on_progress: OnProgress) -> Tensor:
    """uint8 (N, C, H, W), in blocks no larger than what has been seen to fit into memory."""
    size = samples.request.block_size
    if job.batches.max_batch_size < job.batches.batch_size:
        size = min(size, job.batches.max_batch_size)
    samples = replace(samples, setup=replace(samples.setup, request=replace(samples.request, block_size=size)))
    parts, done = [], 0
    for batch in samples.generate(batch_size=size):
        parts.append(batch.pixels)
        done += len(batch.pixels)
        on_progress("drawing samples", done, job.config.samples)
    return torch.cat(parts)
