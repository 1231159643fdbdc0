"""A run's network and its step: images -> x_adv and x_q -> objective -> step -> average; and its metrics and pictures.

Every random draw comes from a generator seeded by (run seed, purpose, step), so a resumed run draws what the
uninterrupted one would, and no random state need be saved. The host reads the device once a step, for the guard, and
when it logs, saves or draws a picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rjem_cli.config import TrainConfig
from rjem_cli.engine.chains.moves import Moves, together, walk
from rjem_cli.engine.chains.pgd import Logits, pgd
from rjem_cli.engine.chains.pipeline import plan_of
from rjem_cli.engine.chains.sgld import sgld
from rjem_cli.engine.data.augment import augment
from rjem_cli.engine.data.images import Splits, to_model
from rjem_cli.engine.data.pictures import png_bytes
from rjem_cli.engine.evaluation.accuracy import accuracy, evenly_spaced
from rjem_cli.engine.model.checkpoint import CheckpointInfo
from rjem_cli.engine.model.energy import energy
from rjem_cli.engine.model.prior import ClassGaussianPrior, load_prior
from rjem_cli.engine.model.wide_resnet import WideResNet, build_model
from rjem_cli.engine.runtime import Runtime
from rjem_cli.engine.sampling.preview import preview
from rjem_cli.engine.seeds import derived_generator, derived_seed
from rjem_cli.engine.training.averaging import averaged, refresh_statistics
from rjem_cli.engine.training.divergence import Guard
from rjem_cli.engine.training.loss_pass import loss_pass
from rjem_cli.engine.training.metrics import Clock, Metrics, look_at_chains, saturation
from rjem_cli.engine.training.objective import robust_jem_loss
from rjem_cli.engine.training.progress import TRAINING, Progress
from rjem_cli.engine.training.replay_buffer import ReplayBuffer
from rjem_cli.engine.training.schedule import learning_rate, steps_per_epoch, total_steps
from rjem_cli.engine.training.state import below, pack_optimizer, unpack_optimizer
from rjem_cli.errors import ConfigError
from rjem_cli.files import write_atomically

VALIDATION_IMAGES = 2000
PREVIEW_PER_CLASS = 8


class Batch(NamedTuple):
    """Images (B, C, H, W) in [-1, 1]: `x` to attack and classify, `x_energy` for the p(x) term; labels (B,)."""

    x: Tensor
    x_energy: Tensor
    labels: Tensor


class Trainer:
    """One run's model, average, buffer and optimizer, and the steps that move them."""

    def __init__(
        self, config: TrainConfig, splits: Splits, runtime: Runtime, run_dir: Path, watch: Callable[[Progress], None]
    ):
        self.config, self.runtime, self.run_dir, self.watch = config, runtime, run_dir, watch
        self.ranks = runtime.ranks
        self.info = CheckpointInfo.of(config, splits, step=0)
        device = runtime.device
        check_crop(config.crop_pad, self.info.image_shape)
        self.images = splits.train.to(runtime.home_of(splits.train.pixels.nbytes))
        self.val = evenly_spaced(splits.val, VALIDATION_IMAGES)
        self.batch_size = min(config.batch_size, len(self.images))
        self.ranks.check_batch(self.batch_size)
        self.watched = evenly_spaced(self.images, self.batch_size).to(device)  # for energies and gradient norms
        self.steps = total_steps(config, len(self.images))
        self.step = self.images_seen = 0
        self.saved_step: int | None = None
        self.energies: dict[str, Tensor] = {}  # E(x) (B,) of data and chains, as looked at last
        torch.manual_seed(derived_seed(config.seed, "weights"))
        self.model = build_model(config, self.info.image_shape[0], len(splits.class_names)).to(device)
        self.average = averaged(self.model, config.ema_decay)
        self.frozen = runtime.frozen(self.model)
        self.loss_pass = loss_pass(self.model, runtime, joint=config.loss_statistics == "joint")
        self.optimizer = make_optimizer(self.model, config)
        self.training_images = splits.train
        self.buffer = self.new_buffer() if config.px_weight else None
        self.guard = Guard(config, len(splits.class_names), saturation(to_model(self.watched.pixels)).item())
        self.metrics = Metrics(run_dir / "metrics.jsonl")

    @cached_property
    def prior(self) -> ClassGaussianPrior:
        """Fitted when it is first needed: a plain classifier that draws no samples needs none."""
        return load_prior(self.training_images, self.info.data_digest).to(self.runtime.device)

    def new_buffer(self) -> ReplayBuffer:
        config = self.config
        generator = self.generator("buffer")
        return ReplayBuffer.from_prior(self.prior, config.buffer_size, config.reinit_prob, generator, self.ranks)

    # --- a step ---

    def train_step(self) -> dict[str, Tensor]:
        """One update of the weights and of their average; returns the step's scalars, still on the device. Raises
        Divergence, before any weight is updated, where the guard sees one."""
        batch = self.next_batch()
        frozen = self.frozen.follow(self.model)
        x_adv, x_q = self.attack_and_negatives(frozen, batch)
        inputs, looks = [x_adv], {}
        if x_q is not None:
            inputs += [batch.x_energy, x_q]
            looks = {"sample_mean": x_q.mean(), "saturation": saturation(x_q)}
        logits_adv, *others = self.loss_pass.train()(*inputs)
        energies = (energy(others[0]), energy(others[1])) if others else None
        terms = robust_jem_loss(logits_adv, batch.labels, energies, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = self.guard.rate_scale * learning_rate(self.step, self.steps, self.config)
        self.optimizer.zero_grad(set_to_none=True)
        self.backward(terms.total)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm or math.inf)
        scalars = self.mean_over_ranks({"loss": terms.total, **terms.named(), "grad_norm": grad_norm, **looks})
        self.guard.check_step(scalars)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        return scalars

    def backward(self, loss: Tensor) -> None:
        """Gradients of the weights, without those that vanish in fp16."""
        scale = self.runtime.loss_scale
        (scale * loss).backward()
        if scale != 1:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(scale)

    def next_batch(self) -> Batch:
        """The step's images, augmented, noised and clamped to the box that chains and attacks live in: this rank's
        share of a batch that is the same for any number of ranks."""
        config, generator = self.config, self.generator("batch", on_device=True)
        epoch, place = divmod(self.step, steps_per_epoch(config, len(self.images)))
        order = torch.randperm(len(self.images), generator=derived_generator(config.seed, "epoch", epoch))
        chosen = order[place * self.batch_size : (place + 1) * self.batch_size].to(
            self.images.pixels.device, non_blocking=True
        )
        pixels, labels = (
            part[chosen].to(self.runtime.device, non_blocking=True) for part in (self.images.pixels, self.images.labels)
        )
        augmented = augment(pixels, config.crop_pad, config.flip, generator)
        noise = config.input_noise_std * torch.randn(pixels.shape, generator=generator, device=pixels.device)
        real = augmented if config.augment_energy else pixels
        x, x_energy = ((to_model(part) + noise).clamp(-1, 1) for part in (augmented, real))
        return Batch(*(self.ranks.rows(part) for part in (x, x_energy, labels)))

    def attack_and_negatives(self, frozen: Logits, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """x_adv and x_q, (B, C, H, W) in [-1, 1]: PGD on the batch (the batch itself where the config attacks nothing)
        and chains from the buffer (None without energies), put back there. They share network passes."""
        if self.buffer is None:
            return walk(frozen, self.attack(batch)), None
        starts, held = self.buffer.draw(self.batch_size, self.generator("draw"))
        chain = self.chain(self.ranks.rows(starts))
        x_adv, x_q = together(frozen, self.attack(batch), chain, shared=self.runtime.shares_passes)
        self.buffer.store(held, self.ranks.whole(x_q, self.batch_size))
        return x_adv, x_q

    def attack(self, batch: Batch) -> Moves:
        config = self.config
        return pgd(
            batch.x,
            batch.labels,
            eps=config.adv_eps,
            steps=config.pgd_steps,
            step_size=config.pgd_step_size,
            norm=config.norm,
        )

    def chain(self, starts: Tensor) -> Moves:
        """SGLD on E(x)."""
        config, noise_generator = self.config, self.generator("sgld", on_device=True)

        def noise(step: int, x: Tensor) -> Tensor:
            shape = (self.batch_size, *x.shape[1:])
            return self.ranks.rows(torch.randn(shape, generator=noise_generator, device=x.device))

        return sgld(
            energy,
            starts,
            sgld_steps=config.sgld_steps,
            step_size=config.sgld_step_size * config.inner_steps,
            grad_clip=config.grad_clip,
            noise_std=config.noise_std,
            noise=noise,
        )

    def mean_over_ranks(self, scalars: dict[str, Tensor]) -> dict[str, Tensor]:
        stacked = torch.stack([value.detach().float() for value in scalars.values()])
        return dict(zip(scalars, self.ranks.sum(stacked) / self.ranks.world))

    def tell(self, note: str) -> None:
        self.watch(Progress(TRAINING, self.step, self.steps, note=note))

    def warn(self, warning: str) -> None:
        self.watch(Progress(TRAINING, self.step, self.steps, warning=warning))

    def generator(self, purpose: str, on_device: bool = False) -> torch.Generator:
        return derived_generator(
            self.config.seed, purpose, self.step, device=self.runtime.device if on_device else "cpu"
        )

    # --- what a run leaves behind ---

    def log(self, clock: Clock, measure_val: bool) -> dict[str, float]:
        """A new line of metrics. Raises Divergence where the guard sees one in it."""
        more = {
            "divergences": float(self.guard.count),
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_second": self.batch_size * clock.steps_per_second(self.step),
        }
        stored = self.buffer.at(torch.arange(min(self.batch_size, self.buffer.size))) if self.buffer else None
        means = self.metrics.means(self.ranks.from_first(lambda: {**self.looks(stored, measure_val), **more}))
        self.guard.check_means(means)
        due, saving = self.config.logs_at(self.step), self.config.saves_at(self.step)
        end = [name for name in means if not due or (name == "val_accuracy" and not saving)]
        self.metrics.add_line(self.step, means, end)
        return means

    def looks(self, stored: Tensor | None, measure_val: bool) -> dict[str, float]:
        """What is measured for a line, with images of the buffer where there is one."""
        found = {}
        if stored is not None:
            looks = look_at_chains(self.frozen.follow(self.model), to_model(self.watched.pixels), stored)
            self.energies = {"data": looks.energy_data_B, "chains": looks.energy_buffer_B}
            found = looks.means()
        if measure_val and len(self.val):
            found["val_accuracy"] = self.val_accuracy()
        return found

    def sampling_model(self) -> WideResNet:
        """The averaged network with BatchNorm statistics of its own."""
        model: WideResNet = self.average.module  # type: ignore[assignment]
        refresh_statistics(model, self.images, self.config.input_noise_std, self.generator("statistics"))
        return model

    def val_accuracy(self) -> float:
        """Of the averaged network on the images kept for validation."""
        return accuracy(self.runtime.scoring().frozen(self.sampling_model()), self.val, self.runtime.device).value

    def draw_samples(self, path: Path, modes: tuple[str, ...]) -> None:
        """A picture of samples in these modes. `watch` hears of each step of the chains, and may raise."""
        plans = [plan_of(self.config, mode) for mode in modes]
        logits_of = self.runtime.frozen(self.sampling_model())
        picture = preview(
            logits_of,
            self.prior,
            plans,
            PREVIEW_PER_CLASS,
            self.config.seed,
            lambda done, total: self.watch(Progress("drawing samples", done, total)),
        )
        write_atomically(path, png_bytes(picture))

    # --- what is saved ---

    def state(self) -> dict[str, Tensor]:
        """What a run goes on from, by name: `model.`, `average.`, the optimizer's and `sums.` in their own types; the
        buffer, float (N, C, H, W) in [-1, 1]; `step`, `images_seen` and `divergences`, int64."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        tensors |= pack_optimizer(self.optimizer)
        tensors |= {f"sums.{name}": value for name, value in self.metrics.sums.items()}
        counts = {"step": self.step, "images_seen": self.images_seen, "divergences": self.guard.count}
        if self.buffer is not None:
            tensors["buffer"] = self.buffer.images
        return tensors | {name: torch.tensor(count) for name, count in counts.items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state` gave. Raises KeyError, ValueError or RuntimeError for tensors that do not fit this
        run."""
        stored, buffer = tensors.get("buffer"), self.buffer
        if buffer is not None and stored is not None and stored.shape != (buffer.size, *self.info.image_shape):
            raise ValueError(f"its buffer has {len(stored)} images, not {buffer.size}: --buffer-size")
        self.model.load_state_dict(below("model.", tensors))
        self.average.load_state_dict(below("average.", tensors))
        unpack_optimizer(self.optimizer, tensors)
        self.metrics.sums = {name: value.to(self.runtime.device) for name, value in below("sums.", tensors).items()}
        if buffer is not None and stored is not None:
            buffer.images = stored
        elif buffer is not None:  # a run that begins with energies now begins with new chains
            self.buffer = self.new_buffer()
        self.step, self.images_seen = int(tensors["step"]), int(tensors["images_seen"])
        self.guard.count = max(0, int(tensors["divergences"]))


def check_crop(crop_pad: int, image_shape: tuple[int, int, int]) -> None:
    """Reflection needs a side longer than the pad."""
    side = min(image_shape[1:])
    if crop_pad >= side:
        raise ConfigError(f"--crop-pad {crop_pad} is too large for images of side {side}; give at most {side - 1}")


def make_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    if config.optimizer == "adam":
        return torch.optim.Adam(
            parameters, lr=config.lr, betas=(config.momentum, 0.999), weight_decay=config.weight_decay
        )
    return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
