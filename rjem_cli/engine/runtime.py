"""Where and in what arithmetic the network runs. `auto` gives its choice and the reason."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rjem_cli.engine.model.frozen import FrozenLogits
from rjem_cli.engine.ranks import ALONE, Ranks
from rjem_cli.errors import AbsentError, ConfigError

Watch = Callable[[str, int, int], None]  # how long work is followed: phase, done, total
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


@dataclass(frozen=True)
class Runtime:
    """A device and a precision, each with the reason it was chosen."""

    device: torch.device
    precision: str
    device_reason: str
    precision_reason: str
    ranks: Ranks = ALONE

    def logits(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """`model`, whose weights stay fp32, as x (B, C, H, W) -> fp32 logits (B, K)."""

        def logits_of(x: Tensor) -> Tensor:
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
                logits_BK: Tensor = model(x)
            return logits_BK.float()

        return logits_of

    def frozen(self, model: nn.Module) -> FrozenLogits:
        """A copy of `model` as chains and attacks see it."""
        return FrozenLogits(model, torch.bfloat16 if self.precision == "bf16" else torch.float32)

    @property
    def shares_passes(self) -> bool:
        """Whether independent chains are faster in one pass: not where twice the images no longer fit a CPU's
        caches."""
        return self.device.type != "cpu"

    def home_of(self, byte_count: int) -> torch.device:
        """Where data of this size stays: on the device while it takes at most half of its free memory."""
        if self.device.type == "cuda" and byte_count > torch.cuda.mem_get_info(self.device)[0] // 2:
            return torch.device("cpu")
        return self.device

    def describe(self) -> str:
        return f"{self.device} ({self.device_reason}), {self.precision} ({self.precision_reason})"


def start_runtime(
    device_name: str = "auto", precision_name: str = "auto", reproducible: bool = False, ranks: Ranks = ALONE
) -> Runtime:
    """Resolve the two names and set torch's matmul mode; `reproducible` takes only kernels that give the same bits
    each time. Raises ConfigError or AbsentError for a device that is not there."""
    device, device_reason = choose_device(device_name)
    precision, precision_reason = choose_precision(precision_name, device)
    allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    torch.backends.cudnn.allow_tf32 = allow_tf32
    torch.backends.cudnn.deterministic = reproducible
    if device.type == "cpu":
        keep_freed_memory()
    return Runtime(device, precision, device_reason, precision_reason, ranks)


def scoring_runtime(device_name: str, ranks: Ranks = ALONE) -> Runtime:
    """fp32, and only kernels that give the same bits each time: a score in another arithmetic is another score."""
    return replace(
        start_runtime(device_name, "fp32", reproducible=True, ranks=ranks), precision_reason="as all scores are"
    )


def keep_freed_memory() -> None:
    """Large blocks stay with this process when they are freed. glibc would give them back to the system, which fills
    each page with zeros when the next pass asks again: a fifth of the time of a pass that keeps its activations."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a system without glibc has its own ways
            glibc = ctypes.CDLL(None)
            glibc.mallopt(M_MMAP_MAX, 0)
            glibc.mallopt(M_TRIM_THRESHOLD, -1)


def choose_device(name: str) -> tuple[torch.device, str]:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), f"auto: {torch.cuda.get_device_name()} found"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "auto: Apple GPU found"
        return torch.device("cpu"), f"auto: no GPU found, {torch.get_num_threads()} threads"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device {name!r} is unknown; give auto, cpu, mps, cuda or cuda:N") from None
    if device.type not in ("cpu", "mps", "cuda"):
        raise ConfigError(f"--device {name!r} is not supported; give auto, cpu, mps, cuda or cuda:N")
    number = int(name.partition(":")[2] or 0)  # torch keeps an index in 8 bits
    if device.type == "cuda" and number >= torch.cuda.device_count():
        raise AbsentError(f"--device {name}: {torch.cuda.device_count()} CUDA devices are visible; use --device auto")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise AbsentError("--device mps: no Apple GPU is visible; use --device auto")
    return device, "as asked"


def choose_precision(name: str, device: torch.device) -> tuple[str, str]:
    if name == "auto":
        if device.type == "cuda":
            return "tf32", "auto: fp32 range, on tensor cores where the GPU has them"
        return "fp32", f"auto: {device.type}"
    if name == "tf32" and device.type != "cuda":
        raise ConfigError(f"--precision tf32 needs a CUDA device, not {device.type}; use fp32 or bf16")
    return name, "as asked"
