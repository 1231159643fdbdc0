"""The knobs of `rjem attack` and `rjem eval`."""

from __future__ import annotations

from dataclasses import dataclass

from rjem_cli.config.common import (
    LARGEST_BATCH,
    LARGEST_RADIUS,
    METRICS,
    SYNTHETIC_SETS,
    DeviceOptions,
    NetworkOptions,
    RuntimeOptions,
)
from rjem_cli.config.fields import Config, flag_name, option
from rjem_cli.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EvalDataOptions(NetworkOptions):
    """Which images a checkpoint is tested on, and the ball that attacks may use. None means: as it was trained."""

    eps: tuple[float, ...] | None = option(
        None,
        "Radius, or several with commas; model units, 8/255 pixel units (default: as trained)",
        minimum=0,
        maximum=LARGEST_RADIUS,
        epsilon=True,
    )
    norm: str | None = option(None, "Norm of the ball (default: as trained)", choices=("linf", "l2"))
    steps: int = option(20, "Steps of one restart", minimum=0)
    restarts: int = option(1, "Attempts per image; the worst counts", minimum=1)
    limit: int = option(1000, "Images, spread evenly over the split; 0 means all", minimum=0)
    split: str = option("test", "Images to test on", choices=("test", "val", "train", "all"))
    test_data: str | None = option(None, "Test images for --data")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test_data and not self.data:
            raise ConfigError("--test-data goes with --data")


@dataclass(frozen=True, kw_only=True)
class AttackConfig(EvalDataOptions, RuntimeOptions):
    """How `rjem attack` attacks, and which images."""

    method: str = option("pgd", "pgd, or apgd: steps that adapt (Croce & Hein 2020)", choices=("pgd", "apgd"))
    step_size: float | None = option(None, "Step of pgd, model units (default: 2.5 * eps / steps)", above=0)
    loss: str = option("ce", "ce: cross-entropy; margin: best wrong logit less the right one", choices=("ce", "margin"))
    start: str = option(
        "random", "random: anywhere in the ball; image: the first restart from the image", choices=("random", "image")
    )
    iterate: str = option("best", "best: any iterate counts; last: only the last one", choices=("best", "last"))
    target: str | None = option(None, "Push every image to this class")
    targeted: str | None = option(None, "random: push each image to a random wrong class", choices=("random",))
    standard: bool = option(False, "Run AutoAttack's standard version instead (needs the package pyautoattack)")
    batch_size: int = option(250, "Images per network pass", minimum=1, maximum=LARGEST_BATCH)
    save: str | None = option(None, "Folder for attack.json, curve.png and a folder of images a radius")
    overwrite: bool = option(False, "Replace the results of an earlier call in that folder")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target and self.targeted:
            raise ConfigError("--target and --targeted exclude each other; give one")
        if self.standard:
            for name in ("method", "steps", "step_size", "loss", "restarts", "start", "iterate", "target", "targeted"):
                if getattr(self, name) != getattr(type(self), name):
                    raise ConfigError(f"{flag_name(name)} does not go with --standard, which fixes its attacks")
        if self.method == "apgd" and self.step_size is not None:
            raise ConfigError("--step-size does not go with --method apgd, which adapts its steps")


@dataclass(frozen=True, kw_only=True)
class SampleScoreOptions(Config):
    """How samples are scored."""

    reference: str | None = option(
        None,
        "NAME:PART of a built-in data set (cifar10:train, digits:test, ...:all), a folder or archive of images, or "
        "statistics .npz (default: what the samples' meta.json names; where it names none, cifar10:train for 32x32 "
        "colour images)",
    )
    features: str = option(
        "auto",
        "inception, dinov2, judge (a plain classifier trained on the reference), or PATH: Inception weights .pth, a "
        "judge's .safetensors; auto takes inception where it makes sense and can be had, else judge, and says why",
    )
    metrics: str = option("all", f"Which scores, with commas: {', '.join(METRICS)}; all takes those that can be had")
    protocol: str = option(
        "standard",
        "standard: against training images; jempp: against train and test, as JEM++",
        choices=("standard", "jempp"),
    )
    num: int | None = option(None, "Score N of the samples, spread evenly", minimum=2)
    allow_few: bool = option(False, "Allow fewer images than features for Frechet distances; the score is labelled")
    neighbours: int = option(3, "k of precision and recall", minimum=1, maximum=100)
    coverage_neighbours: int = option(5, "k of density and coverage", minimum=1, maximum=100)
    is_splits: int = option(10, "Splits of the Inception score", minimum=1)
    kid_subsets: int = option(100, "Subsets of KID", minimum=1)
    kid_subset_size: int = option(1000, "Images in a subset of KID; of fewer images, half of them", minimum=2)


@dataclass(frozen=True, kw_only=True)
class CheckpointScoreOptions(EvalDataOptions):
    """How a checkpoint is scored."""

    bins: int = option(15, "Bins of the calibration error and its diagram, of equal width", minimum=1, maximum=1000)
    ood: str = option(
        "auto",
        f"Out-of-distribution images, with commas: {', '.join(SYNTHETIC_SETS)}, built-in data sets, paths, or none; "
        "auto takes the made ones, and the data sets that are there already",
    )
    samples: int = option(200, "Samples drawn for the figure of energies; 0 draws none", minimum=0, maximum=100_000)


@dataclass(frozen=True, kw_only=True)
class EvalConfig(SampleScoreOptions, CheckpointScoreOptions, DeviceOptions):
    """How `rjem eval` scores samples, or a checkpoint. Networks run in fp32: a score in another arithmetic is another
    score."""

    seed: int = option(
        2020,
        "Seed of all draws; torch-fidelity's is 2020, of IS's order and KID's subsets",
        minimum=0,
        maximum=2**32 - 1,
    )
    batch_size: int | None = option(
        None,
        "Images per network pass (default: of samples 4 on a CPU, else 100, at most 200; of a checkpoint 250)",
        minimum=1,
        maximum=LARGEST_BATCH,
    )
    save: str | None = option(None, "Folder for eval.json and the pictures")
    overwrite: bool = option(False, "Replace the results of an earlier call in that folder")
    results: str | None = option(None, "File that gets one line of JSON a call (default: results.jsonl in RJEM_HOME)")
    require: str | None = option(
        None,
        "Conditions such as 'fid<=45,recall>0.3', by the names that --json gives; exit code 4 where one does not hold",
    )
