"""The loop: images -> x_adv and x_q -> objective -> step -> average -> metrics, pictures, checkpoints.

Every random draw comes from a generator seeded by (run seed, purpose, step), so a resumed run draws what the
uninterrupted one would. The host reads the device only when it logs, saves or draws a picture.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rjem_cli.config import TrainConfig
from rjem_cli.engine.chains.pgd import pgd
from rjem_cli.engine.chains.sgld import energy_gradient, sgld
from rjem_cli.engine.data.augment import augment
from rjem_cli.engine.data.images import Splits, to_model
from rjem_cli.engine.data.pictures import png_bytes
from rjem_cli.engine.model.checkpoint import CheckpointInfo, save_checkpoint, save_state, state_path
from rjem_cli.engine.model.energy import energy
from rjem_cli.engine.model.frozen import freeze
from rjem_cli.engine.model.prior import load_prior
from rjem_cli.engine.model.wide_resnet import WideResNet, build_model
from rjem_cli.engine.runtime import Runtime
from rjem_cli.engine.sampling.preview import plan_of, preview
from rjem_cli.engine.seeds import derived_generator, derived_seed
from rjem_cli.engine.training.averaging import averaged, refresh_statistics
from rjem_cli.engine.training.objective import LossTerms, robust_jem_loss
from rjem_cli.engine.training.replay_buffer import ReplayBuffer
from rjem_cli.engine.training.schedule import learning_rate, steps_per_epoch, total_steps
from rjem_cli.engine.training.state import pack_optimizer, unpack_optimizer
from rjem_cli.errors import DivergedError
from rjem_cli.paths import checkpoints_in, explained, write_atomically

KEPT_CHECKPOINTS = 2
PREVIEW_PER_CLASS = 8


class Progress(NamedTuple):
    """What a watcher sees after each step of a phase; `metrics` come with the log lines of training only."""

    phase: str
    step: int
    steps: int
    metrics: dict[str, float] | None = None


class Batch(NamedTuple):
    x: Tensor  # augmented and noised, in [-1, 1]
    x_energy: Tensor  # the real images of the p(x) term
    labels: Tensor


class Trainer:
    """One run's model, average, buffer and optimizer, and the steps that move them."""

    def __init__(
        self, config: TrainConfig, splits: Splits, runtime: Runtime, run_dir: Path, watch: Callable[[Progress], None]
    ):
        self.config, self.runtime, self.run_dir, self.watch = config, runtime, run_dir, watch
        self.info = CheckpointInfo.of(config, splits, step=0)
        device = runtime.device
        self.images = splits.train.to(device)
        self.batch_size = min(config.batch_size, len(self.images))
        self.steps = total_steps(config, len(self.images))
        self.step = 0
        torch.manual_seed(derived_seed(config.seed, "weights"))
        self.model: WideResNet = build_model(config, self.info.image_shape[0], len(splits.class_names))
        self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = averaged(self.model, config.ema_decay)
        self.optimizer = make_optimizer(self.model, config)
        self.prior = load_prior(splits.train, self.info.data_digest).to(device)
        size = config.buffer_size if config.px_weight else 1
        self.buffer = ReplayBuffer.from_prior(self.prior, size, config.reinit_prob, self.generator("buffer"))
        self.sums: dict[str, Tensor] = {}
        self.last_metrics: dict[str, float] = {}

    # --- the loop ---

    def run(self, should_stop: Callable[[], bool]) -> Path:
        """Train to the last step, or until `should_stop`; returns the checkpoint saved last. Raises DivergedError."""
        clock = Clock(self.step)
        while self.step < self.steps and not should_stop():
            terms, grad_norm = self.train_step()
            self.step += 1
            self.add_up(terms, grad_norm)
            last = self.step == self.steps
            metrics = self.log(clock) if last or self.step % self.config.log_every == 0 else None
            self.watch(Progress("training", self.step, self.steps, metrics))
            if not last and self.step % self.config.checkpoint_every == 0:
                self.save()
            if not last and self.step % self.config.sample_every == 0:
                self.draw_samples(self.run_dir / "samples" / f"step-{self.step:08d}.png", ("energy",))
        return self.save()

    def train_step(self) -> tuple[LossTerms, Tensor]:
        """One update of the weights and of their average."""
        batch = self.next_batch()
        with self.runtime.autocast():
            frozen = freeze(self.model)
            inputs = [self.attack(frozen, batch)]
            if self.config.px_weight:
                inputs += [batch.x_energy, self.negatives(frozen)]
            logits_adv, *others = self.logits(inputs)
            energies = (energy(others[0]), energy(others[1])) if others else None
            terms = robust_jem_loss(logits_adv, batch.labels, energies, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, self.config)
        self.optimizer.zero_grad(set_to_none=True)
        terms.total.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm or math.inf)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        return terms, grad_norm

    def next_batch(self) -> Batch:
        config, generator = self.config, self.generator("batch", on_device=True)
        epoch, place = divmod(self.step, steps_per_epoch(config, len(self.images)))
        order = torch.randperm(len(self.images), generator=derived_generator(config.seed, "epoch", epoch))
        chosen = order[place * self.batch_size : (place + 1) * self.batch_size].to(self.images.pixels.device)
        pixels = self.images.pixels[chosen]
        augmented = augment(pixels, config.crop_pad, config.flip, generator)
        noise = config.input_noise_std * torch.randn(pixels.shape, generator=generator, device=pixels.device)
        real = augmented if config.augment_energy else pixels
        return Batch(to_model(augmented) + noise, to_model(real) + noise, self.images.labels[chosen])

    def attack(self, frozen: WideResNet, batch: Batch) -> Tensor:
        config = self.config
        if config.pgd_steps == 0 or config.adv_eps == 0:
            return batch.x
        step_size, norm = config.pgd_step_size, config.norm
        return pgd(
            frozen, batch.x, batch.labels, eps=config.adv_eps, steps=config.pgd_steps, step_size=step_size, norm=norm
        )

    def negatives(self, frozen: WideResNet) -> Tensor:
        """x_q: chains from the buffer moved on by SGLD on E(x), and put back."""
        config, noise_generator = self.config, self.generator("sgld", on_device=True)
        starts, places = self.buffer.draw(self.batch_size, self.generator("draw"))
        x_q = sgld(
            lambda x: energy(frozen(x).float()),
            starts,
            sgld_steps=config.sgld_steps,
            step_size=config.sgld_step_size * config.inner_steps,
            grad_clip=config.grad_clip,
            noise_std=config.noise_std,
            noise=lambda step, x: torch.randn(x.shape, generator=noise_generator, device=x.device),
        )
        self.buffer.store(places, x_q)
        return x_q

    def logits(self, inputs: list[Tensor]) -> list[Tensor]:
        """Logits of each batch of images, in train mode: in one pass with common BatchNorm statistics, or (as JEM++
        does) one by one."""
        self.model.train()
        if self.config.loss_statistics == "joint":
            return list(self.model(torch.cat(inputs)).float().chunk(len(inputs)))
        return [self.model(x).float() for x in inputs]

    def generator(self, purpose: str, on_device: bool = False) -> torch.Generator:
        return derived_generator(
            self.config.seed, purpose, self.step, device=self.runtime.device if on_device else "cpu"
        )

    # --- what a run leaves behind ---

    def add_up(self, terms: LossTerms, grad_norm: Tensor) -> None:
        """Sum on the device; the host looks at the sums when it logs."""
        named = {"loss": terms.total, **terms._asdict(), "grad_norm": grad_norm}
        del named["total"]
        for name, value in named.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value.detach()
        self.sums["count"] = self.sums.get("count", torch.zeros_like(grad_norm)) + 1

    def log(self, clock: Clock) -> dict[str, float]:
        """Means since the last line, to metrics.jsonl. Raises DivergedError when one is not finite."""
        names = list(self.sums)
        values = dict(zip(names, torch.stack([self.sums[name].float() for name in names]).tolist()))
        count = values.pop("count")
        metrics = {name: value / count for name, value in values.items()}
        self.sums = {}
        if self.config.px_weight:
            metrics |= self.look_at_chains()
        metrics |= {
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_second": self.batch_size * clock.steps_per_second(self.step),
        }
        self.last_metrics = {name: float(f"{value:.6g}") for name, value in metrics.items()}
        line = json.dumps({"step": self.step, **self.last_metrics})
        path = self.run_dir / "metrics.jsonl"
        with explained("write", path), path.open("a") as file:
            file.write(line + "\n")
        if not all(map(math.isfinite, metrics.values())):
            name = next(name for name, value in metrics.items() if not math.isfinite(value))
            raise DivergedError(
                f"training diverged at step {self.step}: {name} is not finite; the checkpoints before it are in "
                f"{self.run_dir / 'checkpoints'}; try a lower --lr or a --max-grad-norm"
            )
        return metrics

    def look_at_chains(self) -> dict[str, float]:
        """Energies of data and buffer, R1 (mean |dE/dx| on data, L2 per image) and the share of saturated pixels in the
        buffer."""
        frozen = freeze(self.model)
        x = to_model(self.images.pixels[: self.batch_size])
        energy_data, gradient = energy_gradient(lambda x: energy(frozen(x)), x)
        stored = self.buffer.images[: self.batch_size]
        with torch.no_grad():
            energy_buffer = energy(frozen(stored))
        found = {
            "energy_data": energy_data.mean(),
            "energy_buffer": energy_buffer.mean(),
            "r1": gradient.flatten(1).norm(dim=1).mean(),
            "saturation": (stored.abs() > 0.99).float().mean(),
        }
        return dict(zip(found, torch.stack(list(found.values())).tolist()))

    def sampling_model(self) -> WideResNet:
        """The averaged network with BatchNorm statistics of its own."""
        model: WideResNet = self.average.module  # type: ignore[assignment]
        refresh_statistics(model, self.images, self.config.input_noise_std, self.generator("statistics"))
        return model

    def draw_samples(self, path: Path, modes: tuple[str, ...]) -> None:
        plans = [plan_of(self.config, mode) for mode in modes]
        picture = preview(freeze(self.sampling_model()), self.prior, plans, PREVIEW_PER_CLASS, self.config.seed)
        write_atomically(path, png_bytes(picture))

    # --- checkpoints ---

    def save(self) -> Path:
        """Write checkpoint and state, then drop all but the newest KEPT_CHECKPOINTS. Raises DivergedError for weights
        that are not finite."""
        model = self.sampling_model()
        values = itertools.chain(self.model.state_dict().values(), model.state_dict().values())
        if not all(bool(value.isfinite().all()) for value in values):
            raise DivergedError(
                f"training diverged before step {self.step}: a weight is not finite; "
                "try a lower --lr or a --max-grad-norm"
            )
        path = self.run_dir / "checkpoints" / f"step-{self.step:08d}.safetensors"
        save_state(state_path(path), self.state())
        save_checkpoint(path, model, self.info.at(self.step))
        for old in checkpoints_in(self.run_dir)[:-KEPT_CHECKPOINTS]:
            old.unlink(missing_ok=True)
            state_path(old).unlink(missing_ok=True)
        return path

    def state(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        tensors |= pack_optimizer(self.optimizer)
        return tensors | {"buffer": self.buffer.images, "step": torch.tensor(self.step)}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state` gave. Raises KeyError or RuntimeError for tensors that do not fit this run."""
        self.model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
        self.average.load_state_dict(
            {name[8:]: value for name, value in tensors.items() if name.startswith("average.")}
        )
        unpack_optimizer(self.optimizer, tensors)
        self.buffer.images.copy_(tensors["buffer"])
        self.step = int(tensors["step"])


class Clock:
    """Steps per second since the last question."""

    def __init__(self, step: int):
        self.step, self.time = step, time.perf_counter()

    def steps_per_second(self, step: int) -> float:
        now = time.perf_counter()
        rate = (step - self.step) / max(1e-9, now - self.time)
        self.step, self.time = step, now
        return rate


def make_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    if config.optimizer == "adam":
        return torch.optim.Adam(
            parameters, lr=config.lr, betas=(config.momentum, 0.999), weight_decay=config.weight_decay
        )
    return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
