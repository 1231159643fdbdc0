"""The knobs of `rjem compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from rjem_cli.config.common import LARGEST_RADIUS, SAMPLE_MODES, DeviceOptions
from rjem_cli.config.fields import flag_name, option
from rjem_cli.config.scoring import EvalDataOptions, SampleScoreOptions
from rjem_cli.errors import ConfigError


@dataclass(frozen=True)
class Scale:
    """A preset, and how many samples a row has: as many as its judge needs, or the field's FID."""

    preset: str
    samples: int


SCALES = {
    "quickstart": Scale("quickstart", 1000),
    "small": Scale("cifar10-small", 10_000),
    "paper": Scale("rjem", 50_000),
}
SAMPLES = 1000
FORMATS = ("table", "md", "latex", "csv", "json")
SUFFIXES = {".md": "md", ".tex": "latex", ".csv": "csv", ".json": "json"}  # of -o, where no --format is given


@dataclass(frozen=True, kw_only=True)
class CompareConfig(SampleScoreOptions, EvalDataOptions, DeviceOptions):
    """What `rjem compare` measures of each row, and how it is told."""

    published: bool = option(False, "Add the six rows of the paper's Table 1, marked as quoted")
    format: str = option("table", "Form of the table; table is TSV off a terminal", choices=FORMATS)
    reproduce: str | None = option(
        None, "Train the models of the paper's table first: JEM++, robust classifier, Robust JEM", choices=("table1",)
    )
    scale: str = option("quickstart", "Network, data and budget of --reproduce", choices=tuple(SCALES))
    train_steps: int | None = option(None, "Training steps of --reproduce (default: as the scale has them)", minimum=1)
    seeds: int = option(1, "Seeds of --reproduce; more than one give mean and spread", minimum=1, maximum=100)
    mode: str = option(
        "energy",
        f"How runs and checkpoints sample, a row each, with commas: {', '.join(SAMPLE_MODES)}; none draws none",
    )
    eps: tuple[float, ...] | None = option(
        None,
        "Radius of the robust accuracy, model units or 8/255 (default: 0.1 = 12.75/255, the paper's training attack)",
        minimum=0,
        maximum=LARGEST_RADIUS,
        epsilon=True,
    )
    norm: str | None = option(None, "Norm of that attack (default: linf)", choices=("linf", "l2"))
    samples: int | None = option(
        None,
        "Samples drawn from a run or checkpoint (default: 1000, with --reproduce as its scale has them)",
        minimum=2,
        maximum=10**6,
    )
    seed: int = option(2020, "Seed of the scores, as of rjem eval", minimum=0, maximum=2**32 - 1)
    sample_seed: int = option(0, "Seed of the samples drawn, as of rjem generate", minimum=0, maximum=2**62)
    output: str | None = option(
        None, f"File for the table, in place of stdout; without --format as its name ends ({', '.join(SUFFIXES)})"
    )
    html: str | None = option(
        None, "File for a page of its own with tables, samples side by side, training curves, chains, protocols"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for mode in self.modes:
            if mode not in SAMPLE_MODES:
                raise ConfigError(f"--mode {self.mode!r}: give {', '.join(SAMPLE_MODES)}, several with commas, or none")
        if self.eps is not None and len(self.eps) != 1:
            raise ConfigError("--eps: a comparison has one column of robust accuracy; give one radius")

        if not self.reproduce:
            for name in ("scale", "train_steps", "seeds"):
                if getattr(self, name) != getattr(CompareConfig, name):
                    raise ConfigError(f"{flag_name(name)} goes with --reproduce; give both, or neither")

    @property
    def form(self) -> str:
        """Of the table that is written."""
        by_name = SUFFIXES.get(PurePath(self.output).suffix.lower(), "table") if self.output else "table"
        return by_name if self.format == "table" else self.format

    @property
    def modes(self) -> tuple[str, ...]:
        return () if self.mode == "none" else tuple(dict.fromkeys(mode.strip() for mode in self.mode.split(",")))

    @property
    def sample_count(self) -> int:
        return self.samples or (SCALES[self.scale].samples if self.reproduce else SAMPLES)
