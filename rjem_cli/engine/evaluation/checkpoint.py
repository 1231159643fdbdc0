"""One call of `rjem eval` on a checkpoint: what it says of test images, of attacked ones, of its own samples, and of
images of other kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rjem_cli.config import DATASETS, SYNTHETIC_SETS, DataOptions, EvalConfig, GenerateConfig
from rjem_cli.engine.chains.pgd import Logits
from rjem_cli.engine.data.collection import read_collection
from rjem_cli.engine.data.downloads import DOWNLOADED, is_downloaded
from rjem_cli.engine.data.images import spread_indices, to_model
from rjem_cli.engine.data.load import load_part
from rjem_cli.engine.evaluation.accuracy import Accuracy
from rjem_cli.engine.evaluation.attack import CleanState, EpsResult, attack_images, look_at_clean
from rjem_cli.engine.evaluation.calibration import Bin, calibration_error, reliability
from rjem_cli.engine.evaluation.choose import TestImages, attack_set, choose_images, choose_radii
from rjem_cli.engine.evaluation.gates import Gates, check_finite, parse_gates
from rjem_cli.engine.evaluation.ood import SCORES, Looks, auroc, fitted_to, look_at, made_set
from rjem_cli.engine.evaluation.search import AttackPlan
from rjem_cli.engine.model.checkpoint import Checkpoint
from rjem_cli.engine.model.own import load_network
from rjem_cli.engine.quiet import unheard
from rjem_cli.engine.ranks import ALONE, Ranks
from rjem_cli.engine.room import Room
from rjem_cli.engine.runtime import Runtime, Watch, scoring_runtime
from rjem_cli.engine.sampling import job as sampling
from rjem_cli.engine.sampling.generate import generate
from rjem_cli.engine.sampling.request import settle_request
from rjem_cli.engine.timing import fitting, pass_seconds
from rjem_cli.errors import ConfigError, InterruptedRunError, RjemError, did_you_mean
from rjem_cli.paths import expand

BATCH_SIZE = 250
TEST, SAMPLES = "test images", "samples"


@dataclass(frozen=True)
class CheckpointJob:
    """All that is settled before the network sees an image. Radii in model units, ascending; `others`, images of other
    kinds by name, uint8 in the model's shape; `sampler`, None where no sample is drawn; `notes`, what is left out."""

    config: EvalConfig
    checkpoint: Checkpoint
    runtime: Runtime
    logits_of: Logits
    found: TestImages
    plan: AttackPlan
    radii: tuple[float, ...]
    others: dict[str, Tensor]
    sampler: sampling.SampleJob | None
    gates: Gates
    notes: list[str]
    room: Room

    @property
    def work(self) -> str:
        """Of which parts it consists, as all ranks must see it."""
        drawn = "samples" if self.sampler else "no samples"
        return f"{drawn}, {', '.join(self.others) or 'no other images'}, and the network {self.checkpoint.sha256()}"

    def score_names(self) -> list[str]:
        robust = [robust_name(eps) for eps in self.radii]
        return [
            "accuracy",
            "nll",
            "ece",
            *robust,
            *(auroc_name(kind, score) for kind in self.others for score in SCORES),
        ]


@dataclass(frozen=True)
class CheckpointScores:
    """`scores` by name; `looks` by kind of images; `right`, bool (N,), of the test images, which `clean` are before the
    attack; `robust`, one a radius, with what stands of them, bool (N,); `notes`, what is left out."""

    scores: dict[str, float]
    looks: dict[str, Looks]
    right: Tensor
    bins: list[Bin]
    clean: CleanState
    robust: list[tuple[EpsResult, Tensor]]
    notes: list[str]


def robust_name(eps: float) -> str:
    return f"robust_accuracy_{eps:g}"


def auroc_name(kind: str, score: str) -> str:
    return f"auroc_{kind}_{score}"


def prepare(
    config: EvalConfig, path: Path | None, ranks: Ranks = ALONE, say: Callable[[str], None] = unheard
) -> CheckpointJob:
    """Read the checkpoint and all images. `say` hears of smaller batches. Raises ConfigError, AbsentError or
    DataError."""
    gates = parse_gates(config.require)
    runtime = scoring_runtime(config.device, ranks)
    checkpoint = load_network(config, path, runtime.device)
    norm, radii = choose_radii(config, checkpoint.info)
    found = choose_images(config, checkpoint.info)
    notes: list[str] = []
    others = other_sets(config, checkpoint, found)
    logits_of = runtime.frozen(checkpoint.model)
    sampler = own_sampler(config, checkpoint, logits_of, runtime, notes) if config.samples else None
    plan = AttackPlan(norm=norm, steps=config.steps, restarts=config.restarts)
    room = Room(config.batch_size or BATCH_SIZE, say)
    job = CheckpointJob(config, checkpoint, runtime, logits_of, found, plan, radii, others, sampler, gates, notes, room)
    gates.check_names(job.score_names())
    return job


def other_sets(config: EvalConfig, checkpoint: Checkpoint, found: TestImages) -> dict[str, Tensor]:
    """By name. Raises ConfigError for two sets of one name, or one that has the name of another row."""
    sets: dict[str, Tensor] = {}
    for kind in kinds_of(config, checkpoint):
        name, pixels = other_images(kind, found, config)
        if name in sets or name in (TEST, SAMPLES) or (name in SYNTHETIC_SETS and kind != name):
            raise ConfigError(f"--ood {kind}: there is a set named {name} already; rename the folder")
        sets[name] = pixels
    return sets


def kinds_of(config: EvalConfig, checkpoint: Checkpoint) -> list[str]:
    """Names and paths of the other images; `auto` downloads nothing, `none` is none. Raises ConfigError for an unknown
    name."""
    if config.ood == "none":
        return []
    if config.ood == "auto":
        own = config.dataset or checkpoint.info.data_name
        return [*SYNTHETIC_SETS, *(name for name in DOWNLOADED if name != own and is_downloaded(name))]
    kinds = [kind.strip() for kind in config.ood.split(",")]
    if "" in kinds:
        raise ConfigError(f"--ood {config.ood!r} has an empty name; give names with commas between, or none")
    for kind in kinds:
        if kind not in (*SYNTHETIC_SETS, *DATASETS) and not expand(kind).exists():
            raise ConfigError(
                f"--ood {kind!r} is no such set and no file; {did_you_mean(kind, (*SYNTHETIC_SETS, *DATASETS))}"
            )
    return kinds


def other_images(kind: str, found: TestImages, config: EvalConfig) -> tuple[str, Tensor]:
    """(name, as many images as test images at most, in the model's shape)."""
    if kind in SYNTHETIC_SETS:
        return kind, made_set(kind, found.images, config.seed)
    if kind in DATASETS:
        name, pixels = kind, load_part(DataOptions(dataset=kind), "test")[1].pixels
    else:
        name, pixels = Path(kind).name.split(".")[0], read_collection(kind).pixels
    return name, fitted_to(pixels[spread_indices(len(pixels), len(found.images))], found.images.image_shape)


def own_sampler(
    config: EvalConfig, checkpoint: Checkpoint, logits_of: Logits, runtime: Runtime, notes: list[str]
) -> sampling.SampleJob | None:
    """The checkpoint's own chains, as `rjem generate` runs them; None, with a note, where their start cannot be had."""
    options = GenerateConfig(count=config.samples, seed=config.seed, data=config.data)
    info = checkpoint.info
    request = settle_request(
        options, info.config, info.class_names, runtime.device.type, count=config.samples, seed=config.seed
    )
    try:
        return sampling.prepare(options, checkpoint, logits_of, request, runtime)
    except RjemError as error:
        notes.append(f"no samples are drawn: {error}")
        return None


def evaluate(job: CheckpointJob, watch: Watch) -> CheckpointScores:
    """Look at every kind of images, attack the test images, and score."""
    images, watch = job.found.images, job.runtime.ranks.followed(watch)
    looks, notes = {TEST: look(job, TEST, to_model(images.pixels), watch)}, list(job.notes)
    logits, labels = looks[TEST].logits, images.labels
    confidence, predictions = logits.softmax(dim=1).max(dim=1)
    right = predictions == labels
    bins = reliability(confidence, right, job.config.bins)
    scores = {
        "accuracy": Accuracy(int(right.sum()), len(right)).value,
        "nll": float(F.cross_entropy(logits.double(), labels)),
        "ece": calibration_error(bins),
    }
    clean, robust = attacked(job, watch)
    scores |= {robust_name(result.eps): float(standing.double().mean()) for result, standing in robust}
    strongest = robust[-1][0]
    looks[f"attacked, eps up to {strongest.eps:g}"] = look(job, "attacked images", strongest.x[clean.attacked], watch)
    if job.sampler is not None:
        try:
            looks[SAMPLES] = look(job, SAMPLES, to_model(draw(job, job.sampler, watch)), watch)
        except InterruptedRunError:
            raise
        except RjemError as error:  # a chain that leaves the finite numbers is no reason to lose the rest
            notes.append(f"no samples are shown: {error}")
    for kind, pixels in job.others.items():
        looks[kind] = look(job, kind, to_model(pixels), watch)
        inside, outside = looks[TEST].scores(), looks[kind].scores()
        for score in SCORES:
            if inside[score].isfinite().all() and outside[score].isfinite().all():
                scores[auroc_name(kind, score)] = auroc(inside[score], outside[score])
            else:
                notes.append(f"no AUROC of {score} against {kind}: it is not finite for some images")
    job.runtime.ranks.jointly(lambda: check_finite(scores, str(job.checkpoint.path)))
    return CheckpointScores(scores, looks, right, bins, clean, robust, notes)


def forecast(job: CheckpointJob) -> float:
    """Seconds here if no image broke, from one batch."""
    count, radii = len(job.found.images), len(job.radii)
    shape, runtime = job.checkpoint.info.image_shape, job.runtime
    size = min(fitting(job.logits_of, shape, job.room, runtime.device), count)
    looks = 3 * count + sum(map(len, job.others.values()))  # for the attack too, and at what it made
    chains = 0.0
    if job.sampler is not None:
        chains = sampling.forecast(job.logits_of, shape, job.sampler.request, runtime)
        looks += len(job.sampler.request.indices())
    a_pass = pass_seconds(job.logits_of, shape, size, runtime.device)
    return (looks + count * radii * job.plan.passes) / size / runtime.ranks.world * a_pass + chains


def look(job: CheckpointJob, kind: str, x: Tensor, watch: Watch) -> Looks:
    return look_at(
        job.logits_of,
        x,
        job.runtime.device,
        job.room,
        lambda done: watch(f"looking at {kind}", done, len(x)),
        job.runtime.ranks,
    )


def attacked(job: CheckpointJob, watch: Watch) -> tuple[CleanState, list[tuple[EpsResult, Tensor]]]:
    """The test images before the attack; a result a radius, the smallest first, with those that stand."""
    chosen = attack_set(job.found, None, targeted=False, seed=job.config.seed)
    runtime = job.runtime
    clean = look_at_clean(job.logits_of, job.plan, chosen, runtime.device, job.room, runtime.ranks)
    results = attack_images(
        job.logits_of,
        job.plan,
        chosen,
        clean,
        job.radii,
        device=runtime.device,
        room=job.room,
        report=lambda done, total, text: watch("attacking", done, total),
        ranks=runtime.ranks,
    )
    return clean, [(result, result.standing(clean, chosen.images.labels)) for result in results]


def draw(job: CheckpointJob, sampler: sampling.SampleJob, watch: Watch) -> Tensor:
    """uint8 (N, C, H, W), in blocks no larger than what fits into memory, as was seen so far."""
    parts, done, size = [], 0, sampler.request.block_size
    if (fits := min(job.runtime.ranks.each(job.room.most))) < job.room.asked:
        size = min(size, fits)
    batches = generate(
        sampler.sampler,
        replace(sampler.request, block_size=size),
        skip=0,
        batch_size=size,
        device=job.runtime.device,
        ranks=job.runtime.ranks,
    )
    for batch in batches:
        parts.append(batch.pixels)
        done += len(batch.pixels)
        watch("drawing samples", done, job.config.samples)
    return torch.cat(parts)
