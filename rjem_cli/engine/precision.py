"""Which arithmetic network passes use, and what `auto` takes.

`auto` uses bf16 only in training, where it gives networks as good as fp32 (docs/measurements.md). Samples and attacks
should be the same on as many machines as possible, and another arithmetic gives another score.
"""

import torch

from rjem_cli.config.common import RuntimeOptions
from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.cpu_speed import bf16_speedup, has_bf16_units
from rjem_cli.errors import ConfigError, RjemError

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# WRN-d-1 has 16 channels where most of its work is: too few for the units that multiply in bf16
TOO_NARROW_FOR_BF16 = 1
MIN_SPEEDUP = 1.1  # of bf16, so that noise in a measurement decides nothing


def choose_precision(options: RuntimeOptions, device: torch.device) -> tuple[str, str]:
    """(precision, reason). Raises ConfigError for one that the device does not have."""
    name = options.precision
    if name == "tf32" and device.type != "cuda":
        raise ConfigError(f"--precision tf32 needs a CUDA device, not {device.type}; use fp32, bf16 or fp16")
    if name != "auto":
        return name, "requested"
    if isinstance(options, TrainConfig):
        if device.type == "cpu":
            return choose_for_cpu(options)
        if device.type == "cuda" and gpu_has_bf16(device):
            return "bf16", "auto: this GPU multiplies in bf16, which trains networks as good as fp32"
    if device.type == "cuda":
        return "tf32", "auto: fp32 range, on tensor cores where the GPU has them"
    return "fp32", "auto: results should differ as little as possible between machines"


def gpu_has_bf16(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def choose_for_cpu(options: TrainConfig) -> tuple[str, str]:
    """The faster of fp32 and bf16 for this network, and the reason."""
    if options.arch != "resnet50" and options.width <= TOO_NARROW_FOR_BF16:
        return "fp32", f"auto: width {options.width} is too narrow for bf16"
    if not has_bf16_units():
        return "fp32", "auto: this CPU does not multiply in bf16"
    try:
        speedup = bf16_speedup(options)
    except RjemError as error:  # the next command could measure and choose otherwise
        return "fp32", f"auto: no measurement of bf16 can be kept ({error})"
    measured = f"auto: bf16 is {speedup:.2f} times as fast, measured on this CPU ({MIN_SPEEDUP} is enough)"
    return "bf16" if speedup >= MIN_SPEEDUP else "fp32", measured
