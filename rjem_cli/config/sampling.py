"""The knobs of chains from a checkpoint: `rjem generate` and `rjem langevin`."""

from __future__ import annotations

from dataclasses import dataclass

from rjem_cli.config.common import LARGEST_BATCH, LARGEST_RADIUS, SAMPLE_MODES, NetworkOptions, RuntimeOptions
from rjem_cli.config.fields import option
from rjem_cli.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ChainOptions(NetworkOptions):
    """Chains from a checkpoint. None means: as the checkpoint's own config says."""

    classes: str = option("all", "Class names or numbers, several with commas; all (balanced) or none (chains on E(x))")
    init: str = option(
        "prior",
        "Start of a chain: prior, noise (uniform), data (a training image of the class), buffer (the training run's "
        "chains), or PATH of your images",
    )
    sgld_steps: int | None = option(None, "Outer SGLD steps, one network pass each", minimum=0)
    sgld_step_size: float | None = option(None, "Inner step size; one outer step moves inner_steps times this", above=0)
    inner_steps: int | None = option(None, "Inner steps per outer step", minimum=1)
    noise_std: float | None = option(None, "Noise per outer SGLD step, model units", minimum=0)
    langevin_noise: bool = option(False, "SGLD as in Eq. 1: noise of sqrt(2 * outer step), no gradient clipping")
    temperature: float = option(
        1.0, "Chains follow E / temperature: without noise, a step of another size before the clip", above=0
    )
    block_size: int | None = option(
        None,
        "Chains in one network pass (default: 50 on a CPU, else 100); changes memory and last bits",
        minimum=1,
        maximum=LARGEST_BATCH,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.langevin_noise and self.noise_std is not None:
            raise ConfigError("--langevin-noise sets the noise; remove --noise-std")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(ChainOptions, RuntimeOptions):
    """What `rjem generate` makes."""

    mode: str = option(
        "energy", "energy: SGLD; attack: targeted PGD; combined: PGD, contrast, SGLD", choices=SAMPLE_MODES
    )
    count: int = option(100, "Number of samples", minimum=1, maximum=10**12)
    shard: str | None = option(None, "i/k: only part i of k equal ones, i from 0; together they are the whole")
    batch_size: int = option(
        250, "Samples handed to the writer at a time; changes no byte", minimum=1, maximum=LARGEST_BATCH
    )
    output: str = option(
        "samples", "Folder (PNG, labels.csv, meta.json, grid.png), x.npz, x.tar, or - for a tar stream"
    )
    overwrite: bool = option(False, "Replace the samples of an earlier call there")
    attack_eps: float | None = option(
        None,
        "Radius of the targeted attack, model units; 8/255 means pixel units",
        minimum=0,
        maximum=LARGEST_RADIUS,
        epsilon=True,
    )
    attack_steps: int | None = option(None, "Steps of the targeted attack", minimum=0)
    contrast: float | None = option(
        None, "Scale of the attack's result before SGLD (mode combined)", above=0, maximum=1
    )


@dataclass(frozen=True, kw_only=True)
class LangevinConfig(ChainOptions, RuntimeOptions):
    """The chains that `rjem langevin` runs and shows."""

    count: int = option(16, "Number of chains", minimum=1, maximum=10_000)
    record: int = option(10, "Steps between recorded images", minimum=1)
    clamp: bool = option(True, "Keep chains inside [-1, 1]; without it, those that leave are reported")
    output: str = option("chains", "Folder for energies.csv, chains.json, energies.png, film.png, chains.gif")
    overwrite: bool = option(False, "Replace the chains of an earlier call in that folder")
