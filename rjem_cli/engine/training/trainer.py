"""The state of a run and one training step: batch -> PGD (x_adv) and SGLD (x_q) -> loss -> optimizer step -> EMA.

Every random draw comes from a generator seeded by (run seed, purpose, step), so a resumed run draws what an
uninterrupted one would, and no random state is saved. The host waits for the device once per step, for the scalars of
the step before, and when it logs, saves or draws samples.
"""

import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.accuracy import evenly_spaced
from rjem_cli.engine.attacks.pgd import pgd
from rjem_cli.engine.data.augment import augment
from rjem_cli.engine.data.images import Splits, to_model
from rjem_cli.engine.distributed import SINGLE, Distributed, peer_errors
from rjem_cli.engine.gradients import LogitsFn
from rjem_cli.engine.models.checkpoint import (
    RJEM_LAYOUT,
    Checkpoint,
    CheckpointInfo,
    checkpoint_tensors,
    find_not_finite,
)
from rjem_cli.engine.models.energy import energy
from rjem_cli.engine.models.prior import ClassGaussianPrior
from rjem_cli.engine.networks.build import Network, build_model, place
from rjem_cli.engine.noise import derived_generator, derived_seed
from rjem_cli.engine.runtime import Runtime
from rjem_cli.engine.sampling.sgld import SgldParameters, sgld
from rjem_cli.engine.training import optimizer
from rjem_cli.engine.training.checkpointing import Snapshot
from rjem_cli.engine.training.guard import Divergence, Guard, saturation
from rjem_cli.engine.training.loss import robust_jem_loss
from rjem_cli.engine.training.metrics_log import METRICS_FILE, MetricsLog
from rjem_cli.engine.training.replay_buffer import ReplayBuffer
from rjem_cli.errors import ConfigError


class Batch(NamedTuple):
    """Images (B, C, H, W) in [-1, 1]: `x` to attack and classify, `x_energy` for the p(x) term; labels (B,)."""

    x: Tensor
    x_energy: Tensor
    labels: Tensor


class TrainingForward(nn.Module):
    """The forward pass in training mode: several batches of images x (B, C, H, W) -> the logits (B, K) of each. If
    `joint`, all go through at once with common BatchNorm statistics and must have one size; else one by one, as in
    JEM++."""

    def __init__(self, model: nn.Module, logits_fn: LogitsFn, joint: bool):
        super().__init__()
        self.model, self.logits_fn, self.joint = model, logits_fn, joint

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        if self.joint:
            return list(self.logits_fn(torch.cat(inputs)).chunk(len(inputs)))
        return [self.logits_fn(x) for x in inputs]


class Trainer:
    """Model, EMA, replay buffer and optimizer of one run, and the step that updates them."""

    def __init__(
        self,
        config: TrainConfig,
        splits: Splits,
        runtime: Runtime,
        run_dir: Path,
        fit_prior: Callable[[], ClassGaussianPrior] | None,
        distributed: Distributed = SINGLE,
    ):
        """`fit_prior` returns the prior; None for a judge, which draws no samples. Raises ConfigError for options that
        do not fit the images or the number of processes, and DataError for images without a prior."""
        self.config, self.runtime, self.run_dir, self.distributed = config, runtime, run_dir, distributed
        self.splits = splits
        self.info = CheckpointInfo.from_splits(config, splits)
        self.images = splits.train.to(runtime.storage_device(splits.train.pixels.nbytes))
        self.batch_size = min(config.batch_size, len(self.images))
        self.check_options()
        self.prior = None if fit_prior is None else fit_prior().to(runtime.device)
        self.monitor_images = evenly_spaced(self.images, self.batch_size).to(runtime.device)
        self.steps = optimizer.total_steps(config, len(self.images))
        self.step = self.images_seen = 0
        torch.manual_seed(derived_seed(config.seed, "weights"))
        model = build_model(config, self.info.image_shape[0], len(splits.class_names))
        self.model = place(model, runtime.device)
        self.ema = optimizer.Ema(self.model, config.ema_decay)
        self.frozen = runtime.frozen(self.model)
        self.training_forward = self.build_training_forward()
        self.optimizer = optimizer.build_optimizer(self.model, config)
        self.buffer = self.new_buffer() if config.px_weight else None
        data_saturation = saturation(to_model(self.monitor_images.pixels)).item()
        self.guard = Guard(config, len(splits.class_names), data_saturation)
        self.metrics = MetricsLog(run_dir / METRICS_FILE)

    def check_options(self) -> None:
        """Raises ConfigError for a crop that needs more pixels than there are, a batch that cannot be divided among the
        processes, and BatchNorm on several CPU processes."""
        config, processes, side = self.config, self.distributed.world_size, min(self.info.image_shape[1:])
        if config.crop_pad >= side:
            raise ConfigError(
                f"--crop-pad {config.crop_pad} is too large for images of side {side}; give at most {side - 1}"
            )
        if self.batch_size % processes:
            raise ConfigError(f"--batch-size {self.batch_size} is not divisible by {processes} processes")
        if processes > 1 and config.norm_layer == "batch" and self.runtime.device.type != "cuda":
            raise ConfigError("--norm-layer batch with several processes needs CUDA; use group or none, or one process")

    def new_buffer(self) -> ReplayBuffer:
        config = self.config
        assert self.prior is not None, "the p(x) term needs a prior"
        return ReplayBuffer.from_prior(self.prior, config.buffer_size, config.reinit_prob, self.generator("buffer"))

    def build_training_forward(self) -> nn.Module:
        """With several processes, gradients are averaged over them."""
        joint = self.config.bn_statistics == "joint"
        if self.distributed.world_size == 1:
            return TrainingForward(self.model, self.runtime.logits(self.model), joint)
        gpu_group = self.distributed.gpu_group if self.runtime.device.type == "cuda" else None
        model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model, gpu_group)
        devices = [self.runtime.device] if self.runtime.device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer PyTorch renames broadcast_buffers
            # statistics of the whole batch are the same in each process already
            return DistributedDataParallel(
                TrainingForward(model, self.runtime.logits(model), joint),
                devices,
                broadcast_buffers=False,
                process_group=gpu_group,
            )

    def generator(self, purpose: str, on_device: bool = False) -> torch.Generator:
        device = self.runtime.device if on_device else "cpu"
        return derived_generator(self.config.seed, purpose, self.step, device=device)

    # --- a step ---

    def train_step(self) -> dict[str, Tensor]:
        """Update the weights and their EMA. Returns the step's scalars, on the device. Raises Divergence if a scalar of
        the step before is not finite, and PeerLostError."""
        with self.runtime.kernels.active(), peer_errors() if self.distributed.world_size > 1 else nullcontext():
            scalars = self.compute_gradients()
            self.guard.check_step(self.step, scalars)
            self.optimizer.step()
            self.ema.update_parameters(self.model)
        self.metrics.add(scalars)
        self.step += 1
        self.images_seen += self.batch_size
        return scalars

    def compute_gradients(self) -> dict[str, Tensor]:
        """Gradients of the loss of the next batch. Returns the step's scalars."""
        config, batch = self.config, self.next_batch()
        frozen = self.frozen.refresh(self.model)
        x_adv = pgd(
            frozen,
            batch.x,
            batch.labels,
            eps=config.adv_eps,
            steps=config.pgd_steps,
            step_size=config.pgd_step_size,
            norm=config.norm,
        )
        self.training_forward.train()
        if self.buffer is None:
            x_q = energies = None
            (logits_adv,) = self.training_forward(x_adv)
        else:
            x_q = self.sample_negatives(frozen, self.buffer)
            logits_adv, logits_data, logits_q = self.training_forward(x_adv, batch.x_energy, x_q)
            energies = energy(logits_data), energy(logits_q)
        terms = robust_jem_loss(
            logits_adv,
            batch.labels,
            energies,
            ce_weight=config.ce_weight,
            px_weight=config.px_weight,
            energy_l2=config.energy_l2,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.guard.lr_scale * optimizer.learning_rate(self.step, self.steps, config)
        self.optimizer.zero_grad(set_to_none=True)
        loss_scale = self.runtime.loss_scale  # in fp16, so that small gradients do not vanish
        torch.autograd.backward(loss_scale * terms.total)
        if loss_scale != 1:
            gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
            torch._foreach_div_(gradients, loss_scale)
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.max_grad_norm or math.inf)
        scalars = {"loss": terms.total, **terms.unweighted(), "grad_norm": grad_norm}
        if x_q is not None:
            scalars |= {"sample_mean": x_q.mean(), "saturation": saturation(x_q)}
        stacked = torch.stack([value.detach().float() for value in scalars.values()])
        return dict(zip(scalars, self.distributed.mean(stacked)))

    def next_batch(self) -> Batch:
        """This process's rows of the step's images, augmented, noised, and clamped to the box of chains and attacks.
        The whole batch does not depend on the number of processes."""
        config, generator = self.config, self.generator("batch", on_device=True)
        epoch, index = divmod(self.step, optimizer.steps_per_epoch(config.batch_size, len(self.images)))
        order = torch.randperm(len(self.images), generator=derived_generator(config.seed, "epoch", epoch))
        indices = order[index * self.batch_size : (index + 1) * self.batch_size]
        indices = indices.to(self.images.pixels.device, non_blocking=True)
        pixels, labels = (
            part[indices].to(self.runtime.device, non_blocking=True)
            for part in (self.images.pixels, self.images.labels)
        )
        augmented = augment(pixels, config.crop_pad, config.flip, generator)
        noise = config.input_noise_std * torch.randn(pixels.shape, generator=generator, device=pixels.device)
        real = augmented if config.augment_energy else pixels
        x, x_energy = ((to_model(part) + noise).clamp(-1, 1) for part in (augmented, real))
        return Batch(*(self.distributed.local_rows(part) for part in (x, x_energy, labels)))

    def sample_negatives(self, frozen: LogitsFn, buffer: ReplayBuffer) -> Tensor:
        """x_q (B, C, H, W): SGLD on E(x) from the buffer, whose images it replaces."""
        config, noise_generator = self.config, self.generator("sgld", on_device=True)
        starts, indices = buffer.sample(self.batch_size, self.generator("draw"))

        def noise(step: int, x: Tensor) -> Tensor:
            shape = (self.batch_size, *x.shape[1:])
            return self.distributed.local_rows(torch.randn(shape, generator=noise_generator, device=x.device))

        x_q = sgld(
            frozen,
            self.distributed.local_rows(starts),
            steps=config.sgld_steps,
            noise=noise,
            **asdict(SgldParameters.from_config(config)),
        )
        buffer.store(indices, self.distributed.all_gather(x_q))
        return x_q

    def sampling_model(self) -> Network:
        """The EMA network with BatchNorm statistics of its own."""
        model: Network = self.ema.module  # type: ignore[assignment]
        noise_std, generator = self.config.input_noise_std, self.generator("statistics")
        with self.runtime.scoring().kernels.active():
            optimizer.refresh_statistics(model, self.images, noise_std, generator)
        return model

    # --- what is saved ---

    def snapshot(self, val_accuracy: float | None) -> Snapshot:
        """What to save now. Raises Divergence for weights, statistics or images that are not finite."""
        state = self.state()
        if name := find_not_finite(state):
            raise Divergence(f"{name} is not finite")
        model = self.sampling_model()
        if find_not_finite(model.state_dict()):
            raise Divergence("the statistics of the EMA network are not finite")
        info = replace(self.info, step=self.step, images_seen=self.images_seen, val_accuracy=val_accuracy)
        prior = self.prior if self.distributed.is_main else None  # only the main process writes
        return Snapshot(info, checkpoint_tensors(model, prior), state, self.runtime)

    def start_from(self, checkpoint: Checkpoint, buffer: Tensor | None) -> None:
        """Take the weights of a trained network of the same shape, and chains (N, C, H, W) as the first of the replay
        buffer. Raises RuntimeError for another network."""
        for network in (self.model, self.ema.module):
            network.load_state_dict(checkpoint.model.state_dict())
        if self.buffer is not None and buffer is not None:
            chains = buffer[: len(self.buffer)]
            self.buffer.images[: len(chains)] = chains.to(self.buffer.images.device)
        origin = {"file": checkpoint.path.name, "sha256": checkpoint.sha256, "layout": RJEM_LAYOUT}
        self.info = replace(self.info, origin=origin)

    def state(self) -> dict[str, Tensor]:
        """Everything to resume from: `model.`, `average.`, `optimizer.` and `sums.` tensors by name; the buffer, float
        (N, C, H, W) in [-1, 1]; `step`, `images_seen` and `divergences`, int64."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.ema.state_dict().items()}
        tensors |= {f"optimizer.{name}": value for name, value in optimizer.pack_optimizer(self.optimizer).items()}
        tensors |= {f"sums.{name}": value for name, value in self.metrics.sums.items()}
        counts = {"step": self.step, "images_seen": self.images_seen, "divergences": self.guard.count}
        if self.buffer is not None:
            tensors["buffer"] = self.buffer.images
        return tensors | {name: torch.tensor(count) for name, count in counts.items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`. Raises KeyError, ValueError or RuntimeError for tensors that do not fit this run."""
        images, buffer = tensors.get("buffer"), self.buffer
        self.model.load_state_dict(with_prefix("model.", tensors))
        self.ema.load_state_dict(with_prefix("average.", tensors))
        optimizer.unpack_optimizer(self.optimizer, with_prefix("optimizer.", tensors))
        device = self.runtime.device
        self.metrics.sums = {name: value.to(device) for name, value in with_prefix("sums.", tensors).items()}
        if buffer is not None and images is not None:
            buffer.images.copy_(images)
        elif buffer is not None:  # a run that trains the p(x) term only now gets new chains
            self.buffer = self.new_buffer()
        self.step, self.images_seen = int(tensors["step"]), int(tensors["images_seen"])
        self.guard.count, self.guard.unchecked = max(0, int(tensors["divergences"])), None


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
