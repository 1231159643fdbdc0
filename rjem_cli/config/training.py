"""Options of `rjem train`. The defaults are the paper's (Korst & Asadulaev 2022) and, where it is silent, JEM++'s
(Yang & Ji 2021). Presets change them."""

from dataclasses import dataclass

from rjem_cli.config.common import ARCHITECTURES, DATASETS, RuntimeOptions, check_radius, image_size, radius
from rjem_cli.config.fields import Config, option
from rjem_cli.errors import ConfigError, OptionError


@dataclass(frozen=True, kw_only=True)
class DataOptions(Config):
    dataset: str = option("cifar10", "Built-in data set", choices=DATASETS, replaces="data")
    data: str | None = option(
        None, "Your images: a folder, an archive (.zip, .tar, ...) or an .npz, with classes", replaces="dataset"
    )
    test_data: str | None = option(None, "Test images for --data, in the same formats (default: split off)")
    image_size: int | None = image_size(
        "Crop the central square of each image and resize it to this many pixels (default: images stay as they are)"
    )
    val_fraction: float = option(0.1, "Share of the training images kept for validation", ge=0, le=0.5)
    crop_pad: int = option(4, "Augmentation: reflect-pad by this many pixels, then crop at random", ge=0)
    flip: bool = option(True, "Augmentation: mirror half of the images")
    augment_energy: bool = option(True, "Also augment the real images of the p(x) term, as JEM++ does")
    input_noise_std: float = option(0.03, "Gaussian noise added to training images, in model units", ge=0)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Config):
    arch: str = option(
        "wrn",
        "Network: JEM++'s wide ResNet, that of TRADES, or MadryLab's ResNet-50; the last two have batch norm only",
        choices=ARCHITECTURES,
    )
    depth: int = option(28, "Depth of a wide ResNet, 6k + 4", ge=10)
    width: int = option(10, "Width factor of a wide ResNet", ge=1)
    norm_layer: str = option("batch", "Normalisation", choices=("batch", "group", "none"))

    @property
    def architecture(self) -> str:
        """As tables name it, such as `WRN-28-10`."""
        if self.arch == "resnet50":
            return "ResNet-50"
        return f"WRN-{self.depth}-{self.width}" + " (TRADES)" * (self.arch == "wrn-trades")


@dataclass(frozen=True, kw_only=True)
class AttackTrainingOptions(Config):
    adv_eps: float = radius(0.1, "Radius of the training attack, model units; 8/255 means pixel units")
    pgd_steps: int = option(15, "Steps of the training attack; 0 trains on clean images", ge=0)
    pgd_step_size: float | None = option(None, "Attack step, model units (default: 2.5 * adv_eps / pgd_steps)", gt=0)
    norm: str = option("linf", "Norm of the attack's ball", choices=("linf", "l2"))

    @property
    def attacks(self) -> bool:
        """False trains on clean images."""
        return self.pgd_steps > 0 and self.adv_eps > 0


@dataclass(frozen=True, kw_only=True)
class EnergyOptions(Config):
    px_weight: float = option(1.0, "Weight of E(x) - E(x_q); 0 leaves a plain or robust classifier", ge=0)
    ce_weight: float = option(1.0, "Weight of the cross-entropy", ge=0)
    energy_l2: float = option(0.0, "Weight of the penalty E(x)^2 + E(x_q)^2", ge=0)
    sgld_steps: int = option(10, "The paper's m: outer SGLD steps, one network pass each", ge=1)
    inner_steps: int = option(5, "The paper's n: inner steps per outer step, in closed form", ge=1)
    sgld_step_size: float = option(0.2, "Inner step size; one outer step moves inner_steps times this", gt=0)
    noise_std: float = option(0.0, "Noise per outer SGLD step, model units", ge=0)
    grad_clip: float = option(1.0, "Each component of dE/dx is clipped to this", gt=0)
    bn_statistics: str = option(
        "joint", "BatchNorm statistics: joint over x_adv, x and x_q, or separate (JEM++)", choices=("joint", "separate")
    )
    buffer_size: int = option(10_000, "Chains kept in the replay buffer", ge=1)
    prior_variance: float = option(
        0.99,
        "Share of each class's variance kept by the prior, from which chains start; 1 keeps all (JEM++)",
        gt=0,
        le=1,
    )
    reinit_prob: float = option(0.05, "Probability that a chain starts again from the prior", ge=0, le=1)


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions(Config):
    batch_size: int = option(64, "Images per step", ge=1)
    epochs: float = option(150.0, "Passes over the training images", gt=0, replaces="steps")
    steps: int | None = option(None, "Training steps, instead of epochs", ge=1)
    optimizer: str = option("sgd", "Optimizer", choices=("sgd", "adam"))
    lr: float = option(0.1, "Peak learning rate", gt=0)
    momentum: float = option(0.9, "Momentum of the SGD optimizer, first beta of Adam", ge=0, le=0.9999)
    max_grad_norm: float | None = option(None, "Clip the parameters' gradient to this norm", gt=0)
    weight_decay: float = option(4e-4, "L2 weight decay", ge=0)
    warmup_steps: int = option(1000, "Steps of linear warm-up", ge=0)
    lr_schedule: str = option(
        "steps", "steps: lr_decay at 1/3, 2/3 and 5/6; cosine: to 0", choices=("steps", "cosine", "constant")
    )
    lr_decay: float = option(0.2, "Factor of the steps schedule", gt=0, le=1)
    ema_decay: float = option(0.999, "Decay of the averaged weights, used outside training; 0: none", ge=0, le=0.99999)


@dataclass(frozen=True, kw_only=True)
class GuardOptions(Config):
    """Training has diverged if a value is not finite at any step, or beyond its limit in a line of metrics. The run
    then returns to its newest checkpoint with half the learning rate."""

    max_energy_gap: float = option(1000.0, "Diverged if |E(x) - E(x_q)| exceeds this", gt=0)
    max_cross_entropy: float = option(3.0, "Diverged if the cross-entropy exceeds this many times ln(classes)", gt=0)
    max_input_grad_norm: float = option(1000.0, "Diverged if the mean L2 norm of dE/dx on data exceeds this", gt=0)
    max_saturation: float = option(0.99, "Diverged if more of the chains' values are at -1 or 1; 1: never", gt=0, le=1)
    max_divergences: int = option(3, "Return to a checkpoint at most this many times; then exit with 5", ge=0)
    buffer_reset_fraction: float = option(0.5, "Share of the replay buffer that is then reset to the prior", ge=0, le=1)


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(Config):
    """How a finished model samples: its sample grids, and the defaults of `rjem generate` on its checkpoint."""

    sample_steps: int = option(50, "The paper's m for samples of a class: outer SGLD steps on E(x, y)", ge=0)
    unconditional_steps: int = option(300, "The paper's m for samples of no class: outer SGLD steps on E(x)", ge=0)
    attack_eps: float = radius(0.5, "Radius of the targeted attack that makes samples")
    attack_steps: int = option(20, "Steps of that attack", ge=0)
    attack_confidence: float = option(
        1.0, "Stop attacking an image once p(y|x) exceeds this; 1 never stops", gt=0, le=1
    )
    prior_temperature: float = option(1.0, "Factor of the prior's deviations from the class mean", ge=0, le=100)
    contrast: float = option(
        0.7, "Factor that scales the attacked images towards grey before SGLD (mode combined)", gt=0, le=1
    )


PAPER_SAMPLING = SamplingOptions()  # the defaults are the paper's, and where it is silent ours


@dataclass(frozen=True, kw_only=True)
class RunOptions(Config):
    preset: str | None = option(None, "Preset of all unset options (default: the one for --dataset or --data)")
    run: str | None = option(None, "Name of the run (default: preset and date)")
    log_every: int = option(20, "Steps between lines of metrics.jsonl", ge=1)
    checkpoint_every: int = option(500, "Steps between checkpoints", ge=1)
    checkpoint_minutes: float = option(10.0, "Also save the state after so many minutes of training; 0: never", ge=0)
    keep_last: int = option(2, "Number of newest checkpoints to keep", ge=1)
    keep_best: bool = option(True, "Also keep the checkpoint with the best validation accuracy")
    sample_every: int = option(500, "Steps between sample grids", ge=1)
    eval_limit: int = option(1000, "Test images of the final table, spread evenly; 0 means all", ge=0)

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint, and with it a line of metrics, is due."""
        return step % self.checkpoint_every == 0

    def logs_at(self, step: int) -> bool:
        """Whether a line of metrics is due."""
        return self.saves_at(step) or step % self.log_every == 0


@dataclass(frozen=True, kw_only=True)
class TrainConfig(
    RunOptions,
    GuardOptions,
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
        if self.arch != "wrn" and self.norm_layer != "batch":
            raise OptionError("--norm-layer", self.norm_layer, f": --arch {self.arch} has batch norm only")
        if self.arch != "resnet50" and (self.depth - 4) % 6:
            lower = self.depth - (self.depth - 4) % 6
            raise OptionError("--depth", self.depth, f": a WRN's depth is 6k + 4; give {lower} or {lower + 6}")
        if self.px_weight == 0 and self.ce_weight == 0:
            raise ConfigError("--px-weight 0 and --ce-weight 0 leave nothing to train")
        if self.px_weight and self.buffer_size < self.batch_size:
            raise ConfigError(f"--buffer-size {self.buffer_size} is below --batch-size {self.batch_size}; raise it")
        if self.test_data and not self.data:
            raise ConfigError("--test-data needs --data")
        check_radius("--adv-eps", self.adv_eps, self.norm)
        check_radius("--attack-eps", self.attack_eps, self.norm)
