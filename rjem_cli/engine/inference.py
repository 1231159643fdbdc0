"""A network that is ready to sample, attack and score."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from rjem_cli.config.common import NetworkOptions, RuntimeOptions
from rjem_cli.engine.gradients import LogitsFn
from rjem_cli.engine.kernels import Kernels, kernels_of
from rjem_cli.engine.models.checkpoint import Checkpoint, CheckpointInfo
from rjem_cli.engine.models.custom_model import load_network
from rjem_cli.engine.models.energy import energy, joint_energy
from rjem_cli.engine.models.graphs import StepGraphs
from rjem_cli.engine.runtime import Runtime, start_runtime
from rjem_cli.errors import ConfigError


@dataclass(frozen=True, repr=False)
class Model:
    """`logits_fn` is the frozen network on the runtime's device: x (B, C, H, W) in [-1, 1] -> fp32 logits (B, K)."""

    checkpoint: Checkpoint
    runtime: Runtime
    logits_fn: LogitsFn

    @classmethod
    def load(cls, options: NetworkOptions, path: Path | None, runtime: Runtime) -> "Model":
        """The checkpoint at `path`, or the network of --model. Raises AbsentError or DataError."""
        return cls.from_checkpoint(load_network(options, path, runtime.device), runtime)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, runtime: Runtime) -> "Model":
        return cls(checkpoint, runtime, runtime.frozen(checkpoint.model))

    @classmethod
    def load_checkpoint(cls, path: Path, options: RuntimeOptions) -> "Model":
        """Raises AbsentError, DataError, or ConfigError for an unavailable device or precision."""
        return cls.load(NetworkOptions(), path, start_runtime(options, reproducible=True))

    @cached_property
    def scoring_fn(self) -> LogitsFn:
        """The network in fp32, which decides what is classified correctly. It is `logits_fn` if that is in fp32."""
        exact = self.runtime.precision == "fp32"
        return self.logits_fn if exact else self.runtime.scoring().frozen(self.checkpoint.model)

    @property
    def kernels(self) -> Kernels:
        """Of `logits_fn`, as are `graphs`: `sgld(model, ...)` takes the same steps as `sgld(model.logits_fn, ...)`."""
        return kernels_of(self.logits_fn)

    @property
    def graphs(self) -> StepGraphs | None:
        return getattr(self.logits_fn, "graphs", None)

    def __repr__(self) -> str:
        where = f"{self.device} {self.runtime.precision}"
        return f"Model({self.checkpoint.path}, step {self.info.step}, {self.info.data_name}, {where})"

    @property
    def info(self) -> CheckpointInfo:
        """Its training config, class names, image shape and data set."""
        return self.checkpoint.info

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.info.class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.info.image_shape

    @property
    def device(self) -> torch.device:
        return self.runtime.device

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) in [-1, 1]. Gradients flow to x, never to parameters. Raises ConfigError
        for images of another shape."""
        if tuple(x.shape[1:]) != self.image_shape:
            raise ConfigError(
                f"x has shape {tuple(x.shape)}; the model takes (B, {', '.join(map(str, self.image_shape))})"
            )
        return self.logits_fn(x.to(self.device))

    def energy(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """E(x) (B,), or E(x, y) for labels y (B,), int64; low means likely (Grathwohl et al. 2020). Raises ConfigError
        for images or labels of another shape."""
        logits_BK = self(x)
        if y is not None and (y.shape != x.shape[:1] or y.dtype != torch.long):
            raise ConfigError(f"y is {y.dtype} {tuple(y.shape)} for {len(x)} images; give one int64 class per image")
        return energy(logits_BK) if y is None else joint_energy(logits_BK, y.to(self.device))
