"""The knobs of chains from a checkpoint: `rjem generate` and `rjem langevin`."""

from __future__ import annotations

from dataclasses import dataclass

from rjem_cli.config.common import LARGEST_BATCH, LARGEST_RADIUS, SAMPLE_MODES, NetworkOptions, RuntimeOptions
from rjem_cli.errors import ConfigError
from rjem_cli.knobs import knob


@dataclass(frozen=True, kw_only=True)
class ChainOptions(NetworkOptions):
    """Chains from a checkpoint. None means: as the checkpoint's own config says."""

    classes: str = knob("all", "Class names or numbers, several with commas; all (balanced) or none (chains on E(x))")
    init: str = knob(
        "prior",
        "Start of a chain: prior, noise (uniform), data (a training image of the class), buffer (the training run's "
        "chains), or PATH of your images",
    )
    sgld_steps: int | None = knob(None, "Outer SGLD steps, one network pass each", minimum=0)
    sgld_step_size: float | None = knob(None, "Inner step size; one outer step moves inner_steps times this", above=0)
    inner_steps: int | None = knob(None, "Inner steps per outer step", minimum=1)
    noise_std: float | None = knob(None, "Noise per outer SGLD step, model units", minimum=0)
    proper: bool = knob(False, "SGLD as Eq. 1 has it: noise of sqrt(2 * outer step), gradient not clipped")
    temperature: float = knob(
        1.0, "Chains follow E / temperature: without noise, a step of another size before the clip", above=0
    )
    block_size: int | None = knob(
        None,
        "Chains in one network pass (default: 50 on a CPU, else 100); changes memory and last bits",
        minimum=1,
        maximum=LARGEST_BATCH,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.proper and self.noise_std is not None:
            raise ConfigError("--proper sets the noise; leave --noise-std out")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(ChainOptions, RuntimeOptions):
    """What `rjem generate` makes."""

    mode: str = knob(
        "energy", "energy: SGLD; attack: targeted PGD; combined: PGD, contrast, SGLD", choices=SAMPLE_MODES
    )
    count: int = knob(100, "Number of samples", minimum=1, maximum=10**12)
    shard: str | None = knob(None, "i/k: only part i of k equal ones, i from 0; together they are the whole")
    batch_size: int = knob(
        250, "Samples handed to the writer at a time; changes no byte", minimum=1, maximum=LARGEST_BATCH
    )
    output: str = knob("samples", "Folder (PNG, labels.csv, meta.json, grid.png), x.npz, x.tar, or - for a tar stream")
    overwrite: bool = knob(False, "Replace the samples of an earlier call there")
    attack_eps: float | None = knob(
        None,
        "Radius of the targeted attack, model units; 8/255 means pixel units",
        minimum=0,
        maximum=LARGEST_RADIUS,
        epsilon=True,
    )
    attack_steps: int | None = knob(None, "Steps of the targeted attack", minimum=0)
    contrast: float | None = knob(None, "Scale of the attack's result before SGLD (mode combined)", above=0, maximum=1)


@dataclass(frozen=True, kw_only=True)
class LangevinConfig(ChainOptions, RuntimeOptions):
    """The chains that `rjem langevin` runs and shows."""

    count: int = knob(16, "Number of chains", minimum=1, maximum=10_000)
    record: int = knob(10, "Steps between recorded images", minimum=1)
    clamp: bool = knob(True, "Keep chains inside [-1, 1]; without it, those that leave are reported")
    output: str = knob("chains", "Folder for energies.csv, chains.json, energies.png, film.png, chains.gif")
    overwrite: bool = knob(False, "Replace the chains of an earlier call in that folder")
