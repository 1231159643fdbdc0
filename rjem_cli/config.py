"""Every knob of rjem, declared once: its meaning, unit, default and range.

The defaults are the paper's (Korst & Asadulaev 2022) and, where it is silent, JEM++'s (Yang & Ji 2021); presets
change them.
"""

from __future__ import annotations

from dataclasses import dataclass

from rjem_cli.errors import ConfigError
from rjem_cli.knobs import Options, flag_name, knob

LARGEST_BATCH = 10**6
LARGEST_LINF = 2.0  # the width of the box [-1, 1]
DATASETS = ("shifted-digits", "digits", "cifar10", "cifar100", "svhn")
STREAM = "-"  # stdout, as the name of an output
SAMPLE_MODES = ("energy", "attack", "combined")
METRICS = ("fid", "is", "kid", "prc", "dc", "intra_fid", "diversity")


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(Options):
    device: str = knob("auto", "auto, cpu, mps, cuda or cuda:N; auto takes the fastest that is there and says why")


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions(DeviceOptions):
    precision: str = knob(
        "auto", "Arithmetic of the network; chain states stay fp32", choices=("auto", "fp32", "tf32", "bf16")
    )
    seed: int = knob(
        0,
        "Seed of all draws; sample or image i draws from seed + i, so space seeds by the number of samples",
        minimum=0,
        maximum=2**62,
    )


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    dataset: str = knob("cifar10", "Built-in data set", choices=DATASETS)
    data: str | None = knob(None, "Your images instead: a folder of class folders, .zip, .tar or .tar.xz")
    test_data: str | None = knob(None, "Test images for --data, in the same forms; without it they are split off")
    val_fraction: float = knob(0.1, "Share of the training images kept for validation", minimum=0, maximum=0.5)
    crop_pad: int = knob(4, "Augmentation: reflect-pad by this many pixels, then crop at random", minimum=0)
    flip: bool = knob(True, "Augmentation: mirror half of the images")
    augment_energy: bool = knob(
        True, "Augment the real images of the p(x) term too (JEM++ does; SADA-JEM found that it hurts)"
    )
    input_noise_std: float = knob(0.03, "Gaussian noise added to training images, in model units", minimum=0)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    depth: int = knob(28, "WRN depth, 6k + 4", minimum=10)
    width: int = knob(10, "WRN width factor", minimum=1)
    norm_layer: str = knob("batch", "Normalisation", choices=("batch", "group", "none"))


@dataclass(frozen=True, kw_only=True)
class AttackTrainingOptions(Options):
    adv_eps: float = knob(
        0.1, "Radius of the training attack, model units; 8/255 means pixel units", minimum=0, maximum=16, epsilon=True
    )
    pgd_steps: int = knob(15, "Steps of the training attack; 0 trains on clean images", minimum=0)
    pgd_step_size: float | None = knob(
        None, "Step of the training attack, model units (default: 2.5 * adv_eps / pgd_steps)", above=0
    )
    norm: str = knob("linf", "Norm of the attack's ball", choices=("linf", "l2"))

    @property
    def attacks(self) -> bool:
        """False trains on clean images."""
        return self.pgd_steps > 0 and self.adv_eps > 0


@dataclass(frozen=True, kw_only=True)
class EnergyOptions(Options):
    px_weight: float = knob(1.0, "Weight of E(x) - E(x_q); 0 leaves a plain or robust classifier", minimum=0)
    ce_weight: float = knob(1.0, "Weight of the cross-entropy", minimum=0)
    energy_l2: float = knob(0.0, "Weight of the penalty E(x)^2 + E(x_q)^2", minimum=0)
    sgld_steps: int = knob(10, "The paper's m: outer SGLD steps, one network pass each", minimum=1)
    inner_steps: int = knob(5, "The paper's n: inner steps per outer step, in closed form", minimum=1)
    sgld_step_size: float = knob(0.2, "Inner step size; one outer step moves inner_steps times this", above=0)
    noise_std: float = knob(0.0, "Noise per outer SGLD step, model units", minimum=0)
    grad_clip: float = knob(1.0, "Each component of dE/dx is clipped to this", above=0)
    loss_statistics: str = knob(
        "joint",
        "BatchNorm statistics of the loss: joint over x_adv, x and x_q, or separate (JEM++'s three passes)",
        choices=("joint", "separate"),
    )
    buffer_size: int = knob(10_000, "Chains kept in the replay buffer", minimum=1)
    reinit_prob: float = knob(0.05, "Chance that a chain starts again from the prior", minimum=0, maximum=1)


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions(Options):
    batch_size: int = knob(64, "Images per step", minimum=1)
    epochs: float = knob(150.0, "Passes over the training images", above=0, replaces="steps")
    steps: int | None = knob(None, "Training steps, instead of epochs", minimum=1)
    optimizer: str = knob("sgd", "Optimizer", choices=("sgd", "adam"))
    lr: float = knob(0.1, "Peak learning rate", above=0)
    momentum: float = knob(0.9, "Momentum of SGD, first beta of Adam", minimum=0, maximum=0.9999)
    max_grad_norm: float | None = knob(None, "Clip the parameters' gradient to this norm", above=0)
    weight_decay: float = knob(4e-4, "L2 weight decay", minimum=0)
    warmup_steps: int = knob(1000, "Steps of linear warm-up", minimum=0)
    lr_schedule: str = knob(
        "steps",
        "steps: times lr_decay at 1/3, 2/3 and 5/6 of the run; cosine: to 0",
        choices=("steps", "cosine", "constant"),
    )
    lr_decay: float = knob(0.2, "Factor of the steps schedule", above=0, maximum=1)
    ema_decay: float = knob(
        0.999,
        "Decay of the averaged weights, which sample and are tested; 0 averages nothing",
        minimum=0,
        maximum=0.99999,
    )


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(Options):
    """How a finished model samples: its sample grids, and the defaults of `rjem generate` on its checkpoint."""

    sample_steps: int = knob(50, "The paper's m when sampling a class: outer SGLD steps on E(x, y)", minimum=0)
    unconditional_steps: int = knob(300, "The paper's m when sampling no class: outer SGLD steps on E(x)", minimum=0)
    attack_eps: float = knob(
        0.5, "Radius of the targeted attack that makes samples", minimum=0, maximum=64, epsilon=True
    )
    attack_steps: int = knob(20, "Steps of that attack", minimum=0)
    contrast: float = knob(0.7, "Scale of the attack's result before SGLD (mode combined)", above=0, maximum=1)


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    run: str | None = knob(None, "Name of the run (default: preset and date)")
    log_every: int = knob(20, "Steps between lines of metrics.jsonl", minimum=1)
    checkpoint_every: int = knob(500, "Steps between checkpoints", minimum=1)
    sample_every: int = knob(500, "Steps between sample grids", minimum=1)
    eval_limit: int = knob(
        1000, "Test images that the final table is measured on, spread evenly; 0 means all", minimum=0
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(
    RunOptions,
    SamplingOptions,
    OptimizerOptions,
    EnergyOptions,
    AttackTrainingOptions,
    ModelOptions,
    DataOptions,
    RuntimeOptions,
):
    """Everything that decides a training run. Saved as config.yaml and inside every checkpoint."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.depth - 4) % 6:
            lower = self.depth - (self.depth - 4) % 6
            raise ConfigError(f"--depth {self.depth}: a WRN's depth is 6k + 4; give {lower} or {lower + 6}")
        if self.px_weight == 0 and self.ce_weight == 0:
            raise ConfigError("--px-weight 0 and --ce-weight 0 leave nothing to train")
        if self.px_weight and self.buffer_size < self.batch_size:
            raise ConfigError(f"--buffer-size {self.buffer_size} is below --batch-size {self.batch_size}; raise it")
        if self.test_data and not self.data:
            raise ConfigError("--test-data goes with --data")


@dataclass(frozen=True, kw_only=True)
class ChainOptions(Options):
    """Chains from a checkpoint. None means: as the checkpoint's own config says."""

    classes: str = knob("all", "Class names or numbers, several with commas; all (balanced) or none (chains on E(x))")
    init: str = knob(
        "prior",
        "Start of a chain: prior, noise (uniform), data (a training image of the class), buffer (the training run's "
        "chains), or PATH of your images",
    )
    data: str | None = knob(None, "Where the training images are now, if they must be read again")
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
            raise ConfigError("--proper sets the noise; leave --noise-std away")


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
        None, "Radius of the targeted attack, model units; 8/255 means pixel units", minimum=0, maximum=64, epsilon=True
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


@dataclass(frozen=True, kw_only=True)
class AttackConfig(RuntimeOptions):
    """How `rjem attack` attacks, and which images."""

    eps: tuple[float, ...] | None = knob(
        None,
        "Radius, or several with commas; model units, 8/255 pixel units (default: as trained)",
        minimum=0,
        maximum=64,
        epsilon=True,
    )
    norm: str | None = knob(None, "Norm of the ball (default: as trained)", choices=("linf", "l2"))
    method: str = knob("pgd", "pgd, or apgd: steps that adapt (Croce & Hein 2020)", choices=("pgd", "apgd"))
    steps: int = knob(20, "Steps of one restart", minimum=0)
    step_size: float | None = knob(None, "Step of pgd, model units (default: 2.5 * eps / steps)", above=0)
    loss: str = knob("ce", "ce: cross-entropy; margin: best wrong logit less the right one", choices=("ce", "margin"))
    restarts: int = knob(1, "Attempts per image; the worst counts", minimum=1)
    start: str = knob(
        "random", "random: anywhere in the ball; image: the first restart from the image", choices=("random", "image")
    )
    iterate: str = knob("best", "best: any iterate counts; last: only the last one", choices=("best", "last"))
    target: str | None = knob(None, "Push every image to this class")
    targeted: str | None = knob(None, "random: push each image to a random wrong class", choices=("random",))
    standard: bool = knob(False, "Run AutoAttack's standard version instead (needs the package pyautoattack)")
    limit: int = knob(1000, "Images, spread evenly over the split; 0 means all", minimum=0)
    split: str = knob("test", "Images to attack", choices=("test", "val", "train", "all"))
    dataset: str | None = knob(None, "Built-in data set to attack on (default: the checkpoint's)", choices=DATASETS)
    data: str | None = knob(None, "Your images to attack on, or where the training images are now")
    test_data: str | None = knob(None, "Test images for --data")
    batch_size: int = knob(250, "Images per network pass", minimum=1, maximum=LARGEST_BATCH)
    save: str | None = knob(None, "Folder for attack.json, curve.png and a folder of images a radius")
    overwrite: bool = knob(False, "Replace the results of an earlier call in that folder")

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
        if self.dataset and self.data:
            raise ConfigError("--dataset and --data exclude each other; give one")
        if self.test_data and not self.data:
            raise ConfigError("--test-data goes with --data")


@dataclass(frozen=True, kw_only=True)
class EvalConfig(DeviceOptions):
    """How `rjem eval` scores samples. Networks run in fp32: a score in another arithmetic is another score."""

    reference: str | None = knob(
        None,
        "NAME:PART of a built-in data set (cifar10:train, digits:test, ...:all), a folder or archive of images, or "
        "statistics .npz (default: what the samples' meta.json names, else cifar10:train)",
    )
    features: str = knob(
        "auto",
        "inception, dinov2, judge (a plain classifier trained on the reference), or PATH: Inception weights .pth, a "
        "judge's .safetensors; auto takes inception where it makes sense and can be had, else judge, and says why",
    )
    metrics: str = knob("all", f"Which scores, with commas: {', '.join(METRICS)}; all takes those that can be had")
    protocol: str = knob(
        "standard", "standard: reference part train; jempp: train and test, as JEM++", choices=("standard", "jempp")
    )
    num: int | None = knob(None, "Score the first N samples only", minimum=2)
    allow_few: bool = knob(False, "Allow fewer images than features for Frechet distances; the score is labelled")
    neighbours: int = knob(3, "k of precision and recall", minimum=1, maximum=100)
    coverage_neighbours: int = knob(5, "k of density and coverage", minimum=1, maximum=100)
    is_splits: int = knob(10, "Splits of the Inception score", minimum=1)
    kid_subsets: int = knob(100, "Subsets of KID", minimum=1)
    kid_subset_size: int = knob(1000, "Images in a subset of KID; fewer where there are fewer", minimum=2)
    seed: int = knob(
        2020, "Seed of the order for IS and of KID's subsets (default: torch-fidelity's)", minimum=0, maximum=2**32 - 1
    )
    batch_size: int | None = knob(
        None, "Images per network pass (default: 8 on a CPU, else 100)", minimum=1, maximum=LARGEST_BATCH
    )
    save: str | None = knob(None, "Folder for eval.json and pictures: nearest training images, classes")
    overwrite: bool = knob(False, "Replace the results of an earlier call in that folder")
    results: str | None = knob(None, "File that gets one line of JSON a call (default: results.jsonl in RJEM_HOME)")
    require: str | None = knob(None, "Conditions such as 'fid<=45,recall>0.3'; exit code 4 where one does not hold")
