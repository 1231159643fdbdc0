"""Scoring a classifier: accuracy, calibration, robust accuracy, out-of-distribution detection, energies."""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rjem_cli.config.common import DATASETS, SYNTHETIC_SETS
from rjem_cli.config.fields import format_epsilon
from rjem_cli.config.sampling import GenerateConfig
from rjem_cli.config.scoring import EvalConfig
from rjem_cli.config.training import DataOptions
from rjem_cli.engine import accuracy
from rjem_cli.engine.attacks import robustness
from rjem_cli.engine.attacks.attack_report import describe_plan
from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.callbacks import Log, OnProgress, noop
from rjem_cli.engine.data.collection import read_collection
from rjem_cli.engine.data.downloads import DATASET_INFO, is_downloaded
from rjem_cli.engine.data.images import spread_indices, to_model
from rjem_cli.engine.data.load import load_part
from rjem_cli.engine.figures import energy_histograms, reliability_diagram
from rjem_cli.engine.inference import Model
from rjem_cli.engine.metrics import results
from rjem_cli.engine.metrics.ood import SCORES, Outputs, auroc, compute_outputs, fit_shape, synthetic_set
from rjem_cli.engine.models.checkpoint import CheckpointInfo
from rjem_cli.engine.models.eval_images import AttackDataset, EvalImages, load_eval_images, resolve_radii
from rjem_cli.engine.runtime import scoring_runtime
from rjem_cli.engine.sampling.generate import SampleJob, SampleSetup
from rjem_cli.engine.timing import find_batch_size, time_pass
from rjem_cli.errors import ConfigError, InterruptedRunError, RjemError, did_you_mean
from rjem_cli.paths import expand

BATCH_SIZE = 250
TEST, SAMPLES = "test images", "samples"
QUANTILES = {"q05": 0.05, "median": 0.5, "q95": 0.95}  # of E(x)


@dataclass(frozen=True)
class ClassifierJob:
    """Everything that is known before the network sees an image. Radii in model units, ascending. `ood_sets`: uint8
    images in the model's shape, by name. `samples` is None if none are drawn. `notes` say what is left out,
    `read_summaries` what was read of a user's images."""

    config: EvalConfig
    model: Model
    test: EvalImages
    plan: robustness.AttackPlan
    radii: tuple[float, ...]
    ood_sets: dict[str, Tensor]
    samples: SampleJob | None
    requirements: tuple[results.Requirement, ...]
    notes: tuple[str, ...]
    batches: BatchSizer
    read_summaries: tuple[str, ...]

    @property
    def score_names(self) -> list[str]:
        names = ["accuracy", "nll", "ece", *(f"robust_accuracy_{eps:g}" for eps in self.radii)]
        return names + [f"auroc_{kind}_{score}" for kind in self.ood_sets for score in SCORES]

    def estimate_seconds(self) -> float:
        """An upper limit, reached if no attack succeeds, from the time of one batch."""
        count, shape, model = len(self.test.images), self.model.image_shape, self.model
        size = min(find_batch_size(model.logits_fn, shape, self.batches, model.device), count)
        passes = float(sum(map(len, self.ood_sets.values())))
        passes += count * (3 + len(self.radii) * self.plan.passes)  # 3: classified, before the attack and after it
        sampling_seconds = 0.0
        if self.samples is not None:
            sampling_seconds = self.samples.setup.estimate_seconds()
            passes += len(self.samples.request.indices())
        return passes / size * time_pass(model.logits_fn, shape, size, model.device) + sampling_seconds

    def compute_outputs(self, kind: str, x: Tensor, on_progress: OnProgress) -> Outputs:
        model, total = self.model, len(x)
        return compute_outputs(
            model.logits_fn, x, model.device, self.batches, lambda done: on_progress(kind, done, total)
        )


@dataclass(frozen=True)
class ClassifierScores:
    """`scores` by name; `outputs` by kind of images; `correct`, bool (N,), for the test images; `robust`, one result
    per radius, the smallest first; `notes`, what is left out."""

    scores: dict[str, float]
    outputs: dict[str, Outputs]
    correct: Tensor
    bins: list[accuracy.CalibrationBin]
    clean: robustness.CleanResult
    robust: list[robustness.RadiusResult]
    notes: list[str]


def score_classifier(
    config: EvalConfig, model: Model, log: Log = noop, on_progress: OnProgress = noop
) -> tuple[dict[str, float], dict[str, Any]]:
    """(scores by name, the document that `rjem eval --json` prints). `on_progress` may raise to stop.
    Raises ConfigError, AbsentError or DataError."""
    start = time.perf_counter()
    job = prepare_classifier(config, model, log)
    result = evaluate_classifier(job, on_progress)
    return result.scores, describe_classifier_scores(job, result, time.perf_counter() - start)


# --- prepare ---


def load_classifier(config: EvalConfig, path: Path | None) -> Model:
    """The checkpoint at `path`, or the network of --model, in the arithmetic of all scores. Raises ConfigError,
    AbsentError or DataError."""
    return Model.load(config, path, scoring_runtime(config.device))


def prepare_classifier(config: EvalConfig, model: Model, log: Log = noop) -> ClassifierJob:
    """Read all images. `log` reports smaller batches. Raises ConfigError, AbsentError or DataError."""
    requirements = results.parse_requirements(config.require)
    norm, radii = resolve_radii(config, model.info)
    test = load_eval_images(config, model.info)
    ood_sets, summaries = load_ood_sets(config, model.info, test)
    samples, notes = prepare_sampling(config, model)
    plan = robustness.AttackPlan(norm=norm, steps=config.steps, restarts=config.restarts)
    batches = BatchSizer(config.batch_size or BATCH_SIZE, log)
    job = ClassifierJob(config, model, test, plan, radii, ood_sets, samples, requirements, notes, batches, summaries)
    results.check_score_names(requirements, job.score_names)
    return job


def load_ood_sets(
    config: EvalConfig, info: CheckpointInfo, test: EvalImages
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """(images by name, what was read of a user's images). Raises ConfigError for two sets of one name, or a name that
    another row has."""
    sets: dict[str, Tensor] = {}
    summaries = [test.read_summary]
    for kind in parse_ood_kinds(config, info):
        name, pixels, summary = load_ood_images(kind, test, config.seed, config.image_size or info.config.image_size)
        if name in sets or name in (TEST, SAMPLES) or (name in SYNTHETIC_SETS and kind != name):
            raise ConfigError(f"--ood {kind}: another set is named {name}; rename the folder")
        sets[name] = pixels
        summaries.append(summary)
    return sets, tuple(filter(None, summaries))


def parse_ood_kinds(config: EvalConfig, info: CheckpointInfo) -> list[str]:
    """Names and paths. `auto` takes data sets that are downloaded already. Raises ConfigError for an unknown name."""
    if config.ood == "none":
        return []
    if config.ood == "auto":
        dataset = config.dataset or info.data_name
        return [*SYNTHETIC_SETS, *(name for name in DATASET_INFO if name != dataset and is_downloaded(name))]
    kinds = [kind.strip() for kind in config.ood.split(",")]
    if "" in kinds:
        raise ConfigError(f"--ood {config.ood!r} has an empty name; give names separated by commas, or none")
    for kind in kinds:
        if kind not in (*SYNTHETIC_SETS, *DATASETS) and not expand(kind).exists():
            hint = did_you_mean(kind, (*SYNTHETIC_SETS, *DATASETS))
            raise ConfigError(f"--ood {kind!r} is not a known set or a file; {hint}")
    return kinds


def load_ood_images(kind: str, test: EvalImages, seed: int, image_size: int | None) -> tuple[str, Tensor, str]:
    """(name, at most as many images as test images, in the model's shape, what was read of a user's images)."""
    if kind in SYNTHETIC_SETS:
        return kind, synthetic_set(kind, test.images, seed), ""
    if kind in DATASETS:
        name, summary = kind, ""
        pixels = load_part(DataOptions(dataset=kind, image_size=image_size), "test").images.pixels
    else:
        collection = read_collection(kind, image_size)
        name, pixels, summary = Path(kind).name.split(".")[0], collection.pixels, collection.read_summary
    return name, fit_shape(pixels[spread_indices(len(pixels), len(test.images))], test.images.image_shape), summary


def prepare_sampling(config: EvalConfig, model: Model) -> tuple[SampleJob | None, tuple[str, ...]]:
    """(the model's samples as `rjem generate` draws them, notes). No samples, and a note, if what their chains
    start from is missing."""
    if not config.samples:
        return None, ()
    options = GenerateConfig(count=config.samples, seed=config.seed, data=config.data)
    try:
        return SampleSetup.build(options, model).load_start(), ()
    except RjemError as error:
        return None, (f"no samples are drawn: {error}",)


# --- evaluate ---


def evaluate_classifier(job: ClassifierJob, on_progress: OnProgress = noop) -> ClassifierScores:
    """Compute the outputs for all kinds of images, attack the test images, and score; `on_progress` may raise to stop.
    Raises DataError for a score that is not finite."""
    images, labels, notes = job.test.images, job.test.images.labels, [*job.model.checkpoint.notes, *job.notes]
    outputs = {TEST: job.compute_outputs(TEST, to_model(images.pixels), on_progress)}
    confidence, predictions = outputs[TEST].logits.softmax(dim=1).max(dim=1)
    correct = predictions == labels
    bins = accuracy.reliability(confidence, correct, job.config.bins)
    scores = {
        "accuracy": accuracy.Accuracy(int(correct.sum()), len(correct)).value,
        "nll": float(F.cross_entropy(outputs[TEST].logits.double(), labels)),
        "ece": accuracy.calibration_error(bins),
    }
    clean, robust = attack_test_images(job, on_progress)
    for result in robust:
        scores[f"robust_accuracy_{result.eps:g}"] = float(result.robust(clean).double().mean())
    attacked_x = robust[-1].x[clean.attacked]
    outputs[f"attacked, eps up to {job.radii[-1]:g}"] = job.compute_outputs("attacked images", attacked_x, on_progress)
    if job.samples is not None:
        try:
            x = to_model(draw_samples(job, job.samples, on_progress))
            outputs[SAMPLES] = job.compute_outputs(SAMPLES, x, on_progress)
        except InterruptedRunError:
            raise
        except RjemError as error:  # a diverging chain must not lose the other scores
            notes.append(f"no samples are shown: {error}")
    for kind, pixels in job.ood_sets.items():
        outputs[kind] = job.compute_outputs(kind, to_model(pixels), on_progress)
        inside, outside = outputs[TEST].scores(), outputs[kind].scores()
        for score in SCORES:
            if inside[score].isfinite().all() and outside[score].isfinite().all():
                scores[f"auroc_{kind}_{score}"] = auroc(inside[score], outside[score])
            else:
                notes.append(f"no AUROC of {score} against {kind}: it is not finite for some images")
    results.check_finite(scores, str(job.model.checkpoint.path))
    return ClassifierScores(scores, outputs, correct, bins, clean, robust, notes)


def attack_test_images(
    job: ClassifierJob, on_progress: OnProgress
) -> tuple[robustness.CleanResult, list[robustness.RadiusResult]]:
    """The test images before the attack, and a result per radius, the smallest first."""
    dataset = AttackDataset(job.test.images, job.test.indices, None, job.config.seed)
    network = job.model.logits_fn
    setup = robustness.AttackSetup(network, network, job.plan, dataset, job.model.device, job.batches)
    clean = robustness.evaluate_clean(setup)

    def report(phase: str, done: int, total: int, state: str) -> None:
        on_progress(phase, done, total)

    return clean, list(robustness.attack_dataset(setup, clean, job.radii, report))


def draw_samples(job: ClassifierJob, samples: SampleJob, on_progress: OnProgress) -> Tensor:
    """uint8 (N, C, H, W), in blocks that fit into memory, as far as is known from earlier batches."""
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


# --- describe ---


def describe_classifier_scores(job: ClassifierJob, result: ClassifierScores, seconds: float) -> dict[str, Any]:
    """Scores by name, the protocol they depend on, and details."""
    labels, names = job.test.images.labels, job.test.images.class_names
    return {
        **results.describe_call("checkpoint", result.scores, job.requirements, seconds),
        "accuracy_interval_95": accuracy.Accuracy(int(result.correct.sum()), len(labels)).to_dict()["interval_95"],
        "per_class": accuracy.accuracy_per_class(result.correct, labels, names),
        "robust": [
            {
                "eps": robust.eps,
                "eps_text": format_epsilon(robust.eps, job.plan.norm),
                "accuracy": robust.robust_accuracy(result.clean).to_dict(),
                "per_class": accuracy.accuracy_per_class(robust.robust(result.clean), labels, names),
            }
            for robust in result.robust
        ],
        "attacked": int(result.clean.attacked.sum()),
        "zero_gradient_images": result.clean.zero_images,
        "reliability": [replace_nan(bin._asdict()) for bin in result.bins],
        "energies": {kind: describe_outputs(outputs) for kind, outputs in result.outputs.items()},
        "protocol": describe_protocol(job),
        "notes": result.notes,
    }


def describe_outputs(outputs: Outputs) -> dict[str, Any]:
    """Mean and quantiles of E(x), and the mean norm of dE/dx; None for values that are not finite or of no images."""
    values = dict.fromkeys(("mean", *QUANTILES, "gradient_norm"), math.nan)
    if len(outputs.energy):
        energy = outputs.energy.double()
        quantiles = energy.quantile(torch.tensor(list(QUANTILES.values())).double())
        values |= {"mean": float(energy.mean()), **dict(zip(QUANTILES, quantiles.tolist()))}
        values["gradient_norm"] = float(outputs.gradient_norm.double().mean())
    return {"count": len(outputs.energy), **replace_nan(values)}


def replace_nan(values: dict[str, float]) -> dict[str, float | None]:
    """None for values that JSON cannot hold."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def describe_protocol(job: ClassifierJob) -> dict[str, Any]:
    """Everything that the scores depend on."""
    checkpoint = job.model.checkpoint
    return {
        "checkpoint": {"path": str(checkpoint.path), "sha256": checkpoint.sha256, "step": checkpoint.info.step},
        "data": job.test.source,
        "images": len(job.test.images),
        "of": job.test.total,
        "indices": job.test.indices.tolist(),
        "attack": describe_plan(job.plan),
        "radii": list(job.radii),
        "robust_means": robustness.ROBUST_MEANS,
        "ece": {"bins": job.config.bins, "width": "equal"},
        "ood": {"sets": {kind: len(pixels) for kind, pixels in job.ood_sets.items()}, "scores": SCORES},
        "samples": None if job.samples is None else job.samples.meta,
        "seed": job.config.seed,
        "arithmetic": "float32",
        "device": job.model.runtime.describe(),
    }


def draw_figures(job: ClassifierJob, result: ClassifierScores) -> results.Figures:
    source, ece = job.test.source, result.scores["ece"]
    energies = {kind: outputs.energy.numpy() for kind, outputs in result.outputs.items()}
    return {
        "reliability.png": lambda: reliability_diagram(result.bins, f"{source}, ECE {ece:.2%}"),
        "energies.png": lambda: energy_histograms(energies, f"E(x), {source}"),
    }
