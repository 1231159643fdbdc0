"""How much faster this CPU computes in bf16 than in fp32."""

import contextlib
import json
import math
import platform
import re
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.data.downloads import DATASET_INFO
from rjem_cli.engine.data.load import SCIKIT_LEARN_SIDES
from rjem_cli.engine.gradients import value_and_grad
from rjem_cli.engine.models.energy import energy
from rjem_cli.engine.models.frozen import FrozenLogits
from rjem_cli.engine.networks.build import build_model, place
from rjem_cli.files import json_digest, locked, write_json
from rjem_cli.paths import timings_dir

MEASURED_DEPTH, MEASURED_IMAGES, REPEATS = 10, 4, 3  # the ratio hardly depends on them
MAX_SIDE = 32  # of the measured images; larger ones would take long


@cache
def cpu_info() -> str:
    """What Linux says about the CPU; empty on other systems."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


def has_bf16_units() -> bool:
    """Whether the CPU multiplies in bf16; others emulate it slowly. Known on Linux only."""
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(cpu_info().split())


def cpu_name() -> str:
    """The model of the CPU, or its architecture if the system does not report a model."""
    match = re.search(r"^model name\s*:\s*(.+)$", cpu_info(), re.MULTILINE)
    return match[1] if match else platform.processor() or platform.machine()


def bf16_speedup(options: TrainConfig) -> float:
    """The time of a gradient pass in fp32 divided by that in bf16, for networks of this kind, width, norm and image
    size. It is measured once on each machine, in a few seconds at width 10, and cached, so that equal commands train
    equal networks. Raises RjemError if the cache cannot be written."""
    side = min(options.image_size or known_side(options) or MAX_SIDE, MAX_SIDE)
    machine = [cpu_name(), torch.__version__]
    key = [*machine, options.arch, options.width, options.norm_layer, side]
    path = timings_dir() / f"{json_digest(key)}.json"
    with locked(path):
        speedup = read_speedup(path)
        if speedup is None:
            speedup = measure_speedup(options, side)
            write_json(path, {"machine": machine, "width": options.width, "side": side, "bf16_speedup": speedup})
        return speedup


def known_side(options: TrainConfig) -> int | None:
    """The side of the training images; None if they have to be read first."""
    if options.data:
        return None
    info = DATASET_INFO.get(options.dataset)
    return info.image_shape[1] if info else SCIKIT_LEARN_SIDES.get(options.dataset)


def read_speedup(path: Path) -> float | None:
    """None for a file that is missing or invalid."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        speedup = json.loads(path.read_bytes())["bf16_speedup"]
        return speedup if isinstance(speedup, float) and 0 < speedup < math.inf else None
    return None


def measure_speedup(options: TrainConfig, side: int) -> float:
    """`bf16_speedup` from the shortest of a few passes in each arithmetic, in turns. Passes take one thread and are
    measured in CPU time, which other work on the machine hardly changes."""
    cpu = torch.device("cpu")
    with torch.random.fork_rng(devices=[]):
        model = place(build_model(replace(options, depth=MEASURED_DEPTH), channels=3, num_classes=10), cpu)
        x = torch.zeros(MEASURED_IMAGES, 3, side, side)
    networks = [FrozenLogits(model, dtype) for dtype in (torch.float32, torch.bfloat16)]
    seconds: list[list[float]] = [[], []]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(1 + REPEATS):  # the first pass warms up
            for network, times in zip(networks, seconds):
                start = time.process_time()
                value_and_grad(network, energy, x)
                times.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    fp32, bf16 = (min(times[1:]) for times in seconds)
    return fp32 / bf16
