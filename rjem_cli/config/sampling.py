"""Options of `rjem generate` and `rjem langevin`."""

from dataclasses import dataclass

from rjem_cli.config.common import LARGEST_BATCH, SAMPLE_MODES, STARTS, NetworkOptions, RuntimeOptions, radius
from rjem_cli.config.fields import flag_name, option
from rjem_cli.config.training import PAPER_SAMPLING
from rjem_cli.errors import ConfigError

SAMPLING_ATTACK_OPTIONS = ("attack_eps", "attack_steps", "attack_confidence")
SGLD_OPTIONS = ("sgld_steps", "sgld_step_size", "inner_steps", "noise_std", "langevin_noise", "temperature")
MODES_BY_OPTION = {  # the modes that use it
    **dict.fromkeys(SAMPLING_ATTACK_OPTIONS, ("attack", "combined")),
    **dict.fromkeys(SGLD_OPTIONS, ("energy", "combined")),
    "contrast": ("combined",),
}


@dataclass(frozen=True, kw_only=True)
class ChainOptions(NetworkOptions):
    """Chains from a checkpoint. None takes the value of the checkpoint's own config."""

    classes: str = option("all", "Class names or numbers, separated by commas; all (balanced) or none (chains on E(x))")
    init: str = option(
        "prior",
        "Start of a chain: prior, noise (uniform), data (a training image of the class), buffer (the training run's "
        "chains), or PATH of your images",
    )
    prior_temperature: float | None = option(
        None,
        "Factor of the prior's deviations from the class mean; below 1: more typical, less varied starts",
        ge=0,
        le=100,
    )
    sgld_steps: int | None = option(None, "Outer SGLD steps, one network pass each", ge=0)
    sgld_step_size: float | None = option(None, "Inner step size; one outer step moves inner_steps times this", gt=0)
    inner_steps: int | None = option(None, "Inner steps per outer step", ge=1)
    noise_std: float | None = option(None, "Noise per outer SGLD step, model units", ge=0)
    langevin_noise: bool = option(False, "SGLD as in Eq. 1: noise of sqrt(2 * outer step), no gradient clipping")
    temperature: float = option(1.0, "Sample from exp(-E / temperature); without noise, this only scales steps", gt=0)
    block_size: int | None = option(
        None,
        "Chains per network pass (default: 50 on a CPU, else 100); changes memory use and the last bits",
        ge=1,
        le=LARGEST_BATCH,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size is not None and self.init in STARTS and self.model is None:
            raise ConfigError(f"--image-size resizes your images; it needs --init PATH, not {self.init}")
        if self.prior_temperature is not None and self.init != "prior":
            raise ConfigError(f"--prior-temperature needs --init prior, not {self.init}")
        if self.langevin_noise and self.noise_std is not None:
            raise ConfigError("--langevin-noise sets the noise; remove --noise-std")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(ChainOptions, RuntimeOptions):
    mode: str = option(
        "energy", "energy: SGLD; attack: targeted PGD; combined: PGD, contrast, SGLD", choices=SAMPLE_MODES
    )
    count: int = option(100, "Number of samples", ge=1, le=10**12)
    shard: str | None = option(None, "i/k: generate part i, from 0, of k equal parts of the samples")
    batch_size: int = option(250, "Samples per write; does not change the samples", ge=1, le=LARGEST_BATCH)
    paper: bool = option(
        False,
        "Use the paper's settings, and rjem's where it is silent, instead of the checkpoint's own: attack eps "
        f"{PAPER_SAMPLING.attack_eps:g}, {PAPER_SAMPLING.attack_steps} steps, contrast {PAPER_SAMPLING.contrast:g}, "
        f"{PAPER_SAMPLING.sample_steps} SGLD steps ({PAPER_SAMPLING.unconditional_steps} without a class)",
    )
    output: str = option("samples", "Folder (PNG, labels.csv, meta.json, grid.png), x.npz, x.tar, or - (tar on stdout)")
    overwrite: bool = option(False, "Replace the samples of an earlier call in the output")
    attack_eps: float | None = radius(None, "Radius of the targeted attack, model units; 8/255 means pixel units")
    attack_steps: int | None = option(None, "Steps of the targeted attack", ge=0)
    attack_confidence: float | None = option(
        None, "Stop attacking an image once p(y|x) exceeds this; 1 never stops", gt=0, le=1
    )
    contrast: float | None = option(
        None, "Factor that scales the attacked images towards grey before SGLD (mode combined)", gt=0, le=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, modes in MODES_BY_OPTION.items():
            if self.mode not in modes and self.differs(name):
                raise ConfigError(f"{flag_name(name)} needs --mode {' or '.join(modes)}, not {self.mode}")


@dataclass(frozen=True, kw_only=True)
class LangevinConfig(ChainOptions, RuntimeOptions):
    count: int = option(16, "Number of chains", ge=1, le=10_000)
    record: int = option(10, "Steps between recorded images", ge=1)
    clamp: bool = option(True, "Keep chains inside [-1, 1]; without it, chains that leave are reported")
    output: str = option("chains", "Folder for energies.csv, chains.json, energies.png, film.png, chains.gif")
    overwrite: bool = option(False, "Replace the chains of an earlier call in the output")
