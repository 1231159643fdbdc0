"""Which arithmetic network passes use, and what `auto` takes.

`auto` uses bf16 only in training, where it gives networks as good as fp32 (docs/measurements.md). Samples and attacks
should be the same on as many machines as possible, and another arithmetic gives another score.
"""

import contextlib
import json
import platform
import re
import time
from dataclasses import replace
from pathlib import Path

import torch

from rjem_cli.config.common import RuntimeOptions
from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.data.downloads import DATASET_INFO
from rjem_cli.engine.gradients import value_and_grad
from rjem_cli.engine.models.energy import energy
from rjem_cli.engine.models.frozen import FrozenLogits
from rjem_cli.engine.models.wide_resnet import build_model, place
from rjem_cli.errors import ConfigError, RjemError
from rjem_cli.files import json_digest, locked, write_json
from rjem_cli.paths import timings_dir

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
NARROW = 1  # WRN-d-1 has 16 channels where most of its work is: too few for the units that multiply in bf16
MIN_SPEEDUP = 1.1  # of bf16, so that noise in a measurement decides nothing
MEASURED_DEPTH, MEASURED_IMAGES, REPEATS = 10, 16, 3  # the ratio hardly depends on them
MAX_SIDE = 32  # of the measured images; larger ones would take long


def choose_precision(options: RuntimeOptions, device: torch.device) -> tuple[str, str]:
    """(precision, reason). Raises ConfigError for one that the device does not have."""
    name, trains = options.precision, isinstance(options, TrainConfig)
    if name == "tf32" and device.type != "cuda":
        raise ConfigError(f"--precision tf32 needs a CUDA device, not {device.type}; use fp32, bf16 or fp16")
    if name != "auto":
        return name, "requested"
    if device.type == "cuda":
        with torch.cuda.device(device):
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if trains and has_bf16:
            return "bf16", "auto: this GPU multiplies in bf16, which trains networks as good as fp32"
        return "tf32", "auto: fp32 range, on tensor cores where the GPU has them"
    if device.type == "cpu" and isinstance(options, TrainConfig):
        return choose_for_cpu(options)
    return "fp32", f"auto: {device.type}"


def choose_for_cpu(options: TrainConfig) -> tuple[str, str]:
    """The faster of fp32 and bf16 for this network, and the reason."""
    if options.width <= NARROW:
        return "fp32", f"auto: width {options.width} is too narrow for bf16"
    if not has_bf16_units():
        return "fp32", "auto: this CPU does not multiply in bf16"
    speedup = bf16_speedup(options)
    measured = f"auto: bf16 is {speedup:.2g} times as fast, measured on this CPU"
    return "bf16" if speedup >= MIN_SPEEDUP else "fp32", measured


def has_bf16_units() -> bool:
    """Whether the CPU multiplies in bf16; others emulate it slowly. Known on Linux only."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(flags)


def cpu_name() -> str:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        match = None
    return match[1] if match else platform.processor() or platform.machine()


def bf16_speedup(options: TrainConfig) -> float:
    """The time of a gradient pass in fp32 over that in bf16, for networks of this width and norm. It is measured once
    on each machine, in at most two seconds for a width of 10, and cached, so that a resumed run gets the same
    arithmetic."""
    info = DATASET_INFO.get(options.dataset) if not options.data else None
    side = min(options.image_size or (info.image_shape[1] if info else MAX_SIDE), MAX_SIDE)
    machine = [cpu_name(), torch.get_num_threads(), torch.__version__]
    path = timings_dir() / f"{json_digest([*machine, options.width, options.norm_layer, side])}.json"
    try:
        with locked(path):
            speedup = read_speedup(path)
            if speedup is None:
                speedup = measure_speedup(options, side)
                write_json(path, {"machine": machine, "width": options.width, "side": side, "bf16_speedup": speedup})
    except RjemError:  # the cache cannot be locked or written
        speedup = measure_speedup(options, side)
    return speedup


def read_speedup(path: Path) -> float | None:
    """None for a file that is missing or invalid."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return float(json.loads(path.read_bytes())["bf16_speedup"])
    return None


def measure_speedup(options: TrainConfig, side: int) -> float:
    """The shortest of a few passes each, in turns. Other work on the machine only makes a pass longer."""
    cpu = torch.device("cpu")
    with torch.random.fork_rng(devices=[]):
        model = place(build_model(replace(options, depth=MEASURED_DEPTH), channels=3, num_classes=10), cpu)
        x = torch.zeros(MEASURED_IMAGES, 3, side, side)
    networks = [FrozenLogits(model, dtype) for dtype in (torch.float32, torch.bfloat16)]
    seconds: list[list[float]] = [[], []]
    for _ in range(1 + REPEATS):  # the first pass warms up
        for network, times in zip(networks, seconds):
            start = time.perf_counter()
            value_and_grad(network, energy, x)
            times.append(time.perf_counter() - start)
    fp32, bf16 = (min(times[1:]) for times in seconds)
    return fp32 / bf16
