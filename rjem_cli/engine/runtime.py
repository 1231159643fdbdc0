"""Where and in what arithmetic the network runs. `auto` gives its choice and the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rjem_cli.errors import AbsentError, ConfigError

Watch = Callable[[str, int, int], None]  # how long work is followed: phase, done, total


@dataclass(frozen=True)
class Runtime:
    """A device and a precision, each with the reason it was chosen."""

    device: torch.device
    precision: str
    device_reason: str
    precision_reason: str

    def logits(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """`model` as x (B, C, H, W) -> fp32 logits (B, K). Only the network runs in bf16, never a chain's state."""

        def logits_of(x: Tensor) -> Tensor:
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
                logits_BK: Tensor = model(x)
            return logits_BK.float()

        return logits_of

    def home_of(self, byte_count: int) -> torch.device:
        """Where data of this size stays: on the device while it takes at most half of its free memory."""
        if self.device.type == "cuda" and byte_count > torch.cuda.mem_get_info(self.device)[0] // 2:
            return torch.device("cpu")
        return self.device

    def describe(self) -> str:
        return f"{self.device} ({self.device_reason}), {self.precision} ({self.precision_reason})"


def start_runtime(device_name: str = "auto", precision_name: str = "auto", reproducible: bool = False) -> Runtime:
    """Resolve the two names and set torch's matmul mode; `reproducible` takes only kernels that give the same bits
    each time. Raises ConfigError or AbsentError for a device that is not there."""
    device, device_reason = choose_device(device_name)
    precision, precision_reason = choose_precision(precision_name, device)
    allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    torch.backends.cudnn.allow_tf32 = allow_tf32
    torch.backends.cudnn.deterministic = reproducible
    return Runtime(device, precision, device_reason, precision_reason)


def scoring_runtime(device_name: str) -> Runtime:
    """fp32, and only kernels that give the same bits each time: a score in another arithmetic is another score."""
    return replace(start_runtime(device_name, "fp32", reproducible=True), precision_reason="as all scores are")


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
