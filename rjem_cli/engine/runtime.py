"""Device, precision and compilation. `auto` returns its choice and the reason."""

import contextlib
import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rjem_cli.config.common import RuntimeOptions
from rjem_cli.engine.distributed import is_distributed
from rjem_cli.engine.kernels import Kernels
from rjem_cli.engine.models.frozen import GRADIENT_SCALE, FrozenLogits
from rjem_cli.engine.precision import HALVES, choose_precision
from rjem_cli.errors import AbsentError, ConfigError

SCORING_REASON = "as for all scores"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


@dataclass(frozen=True)
class Runtime:
    """A device, a precision, and whether passes are compiled; each with the reason for it. `reproducible`: only kernels
    that give the same bits each time. `graphs`: steps of chains and attacks may be replayed as CUDA graphs."""

    device: torch.device
    precision: str
    compiles: bool
    device_reason: str
    precision_reason: str
    compile_reason: str
    reproducible: bool
    graphs: bool

    def logits(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """`model`, whose weights stay fp32, as x (B, C, H, W) -> fp32 logits (B, K)."""
        network: nn.Module = torch.compile(model, dynamic=False) if self.compiles else model  # type: ignore[assignment]

        def compute_logits(x: Tensor) -> Tensor:
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
                logits_BK: Tensor = network(x)
            return logits_BK.float()

        return compute_logits

    def frozen(self, model: nn.Module) -> FrozenLogits:
        """`model` for chains and attacks."""
        return FrozenLogits(model, self.dtype, self.compiles, self.kernels, self.graphs)

    @property
    def kernels(self) -> Kernels:
        return Kernels(self.precision == "tf32", self.reproducible)

    @property
    def dtype(self) -> torch.dtype:
        """Of the network's passes; tf32 is a mode of fp32 products."""
        return HALVES.get(self.precision, torch.float32)

    @property
    def loss_scale(self) -> float:
        """Multiplies a loss before its backward pass; the gradients are divided by it afterwards."""
        return GRADIENT_SCALE if self.dtype == torch.float16 else 1.0

    def scoring(self) -> "Runtime":
        """For accuracies: fp32 and reproducible kernels, as in `rjem eval`."""
        return replace(self, precision="fp32", precision_reason=SCORING_REASON, reproducible=True)

    @property
    def arithmetic(self) -> str:
        """What decides the last bits of a result."""
        return f"{self.device.type} {self.precision}{' compiled' if self.compiles else ''}"

    def storage_device(self, byte_count: int) -> torch.device:
        """Where to store data of this size: on the device if it takes at most half of the free memory."""
        if self.device.type == "cuda" and byte_count > torch.cuda.mem_get_info(self.device)[0] // 2:
            return torch.device("cpu")
        return self.device

    def describe(self) -> str:
        passes = f"{'compiled' if self.compiles else 'not compiled'} ({self.compile_reason})"
        graphs = ", CUDA graphs" if self.graphs else ""
        return f"{self.device} ({self.device_reason}), {self.precision} ({self.precision_reason}), {passes}{graphs}"


ChoosePrecision = Callable[[RuntimeOptions, torch.device], tuple[str, str]]  # (precision, reason)


def start_runtime(
    options: RuntimeOptions, *, reproducible: bool = False, choose: ChoosePrecision = choose_precision
) -> Runtime:
    """Resolve `auto`. `reproducible` allows only kernels that give the same bits each time.
    Raises ConfigError or AbsentError for an unavailable device or precision."""
    device, device_reason = choose_device(options.device)
    precision, precision_reason = choose(options, device)
    compiles, compile_reason = choose_compile(options.compile, device)
    if device.type == "cpu":
        keep_freed_memory()
    # NCCL's calls could interrupt the recording of a graph
    graphs = options.cuda_graphs and device.type == "cuda" and not is_distributed()
    return Runtime(
        device,
        precision,
        compiles,
        device_reason,
        precision_reason,
        compile_reason,
        reproducible=reproducible,
        graphs=graphs,
    )


def scoring_runtime(device_name: str) -> Runtime:
    """fp32 and reproducible kernels: another arithmetic gives another score."""
    options = RuntimeOptions(device=device_name, precision="fp32", compile=False, cuda_graphs=False)
    runtime = start_runtime(options, reproducible=True)
    return replace(runtime, precision_reason=SCORING_REASON, compile_reason=SCORING_REASON)


def keep_freed_memory() -> None:
    """Keep large freed blocks in this process. By default glibc returns them to the system, which fills each page with
    zeros for the next pass: a fifth of the time of a pass that stores its activations."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a system without glibc
            glibc = ctypes.CDLL(None)
            glibc.mallopt(M_MMAP_MAX, 0)
            glibc.mallopt(M_TRIM_THRESHOLD, -1)


def choose_device(name: str) -> tuple[torch.device, str]:
    """(device, reason). `name`: a value of --device. Raises ConfigError or AbsentError for an unavailable device."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), f"auto: {torch.cuda.get_device_name()} found"
        if torch.backends.mps.is_available() and not is_distributed():
            return torch.device("mps"), "auto: Apple GPU found"
        return torch.device("cpu"), f"auto: no GPU found, {torch.get_num_threads()} threads"
    kind, _, index = name.partition(":")
    if index and is_distributed():
        raise ConfigError(f"--device {name}: each process uses its own GPU; give --device cuda")
    if kind == "mps" and is_distributed():
        raise ConfigError("--device mps: several processes need CUDA GPUs or the CPU; give --device cpu")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise AbsentError(f"--device {name}: {torch.cuda.device_count()} CUDA devices are visible; use --device auto")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise AbsentError("--device mps: no Apple GPU is visible; use --device auto")
    return torch.device(name), "requested"


def choose_compile(requested: bool | None, device: torch.device) -> tuple[bool, str]:
    """(whether to compile, reason). Raises AbsentError if torch.compile does not work here."""
    if requested is None and device.type == "cpu":
        return False, "auto: on a CPU, compilation takes a minute and makes some networks slower"
    if requested is None:
        return False, "auto: compilation takes half a minute, which only a long run repays"
    if requested:
        check_compiler(device)
    return requested, "requested"


def check_compiler(device: torch.device) -> None:
    """Raises AbsentError if torch.compile does not work, now and not in the middle of the work."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # anything may be missing: a C++ compiler, Triton, a supported Python
        reason = str(error).strip().partition("\n")[0]
        raise AbsentError(f"--compile: torch.compile does not work here ({reason[:200]}); remove --compile") from None
