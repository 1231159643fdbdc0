"""What rjem runs on: versions, devices, the arithmetic that `auto` takes and why."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import torch

from rjem_cli import __version__
from rjem_cli.config import GenerateConfig, TrainConfig
from rjem_cli.engine.memory import total_bytes
from rjem_cli.engine.runtime import BF16_PAYS_FROM_WIDTH, choose_compile, choose_device, choose_precision

OPTIONAL = {"pyautoattack": "rjem attack --standard", "tensorboard": "rjem train --tensorboard"}


def describe_environment() -> dict[str, Any]:
    """Plain data: rjem, python, platform, packages, cpu, gpus, auto (choice and reason of each)."""
    return {
        "rjem": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "packages": package_versions(),
        "cpu": describe_cpu(),
        "gpus": [describe_gpu(number) for number in range(torch.cuda.device_count())],
        "auto": describe_choices(),
    }


def package_versions() -> dict[str, str]:
    """Of what rjem needs, and of what it can use."""
    lines = importlib.metadata.requires("rjem-cli") or []
    needed = {re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines if "extra ==" not in line}
    found = {}
    for name in sorted(needed | OPTIONAL.keys()):
        try:
            found[name] = torch.__version__ if name == "torch" else importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = f"not installed (only {OPTIONAL[name]} needs it)" if name in OPTIONAL else "missing"
    return found


def describe_cpu() -> dict[str, Any]:
    return {
        "name": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "memory_bytes": total_bytes(torch.device("cpu")),
    }


def cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def describe_gpu(number: int) -> dict[str, Any]:
    found = torch.cuda.get_device_properties(number)
    return {
        "name": found.name,
        "memory_bytes": found.total_memory,
        "capability": f"{found.major}.{found.minor}",
        "bf16": found.major >= 8,  # Ampere and newer
        "cuda": torch.version.cuda,
    }


def describe_choices() -> dict[str, str]:
    device, reason = choose_device("auto")
    told = {"device": f"{device} ({reason})"}
    wide = BF16_PAYS_FROM_WIDTH
    for name, options in {
        "precision of training, width 1": TrainConfig(width=1),
        f"precision of training, width {wide} and more": TrainConfig(width=wide),
        "precision of samples and attacks": GenerateConfig(),
    }.items():
        precision, why = choose_precision(options, device)
        told[name] = f"{precision} ({why.removeprefix('auto: ')})"
    told["precision of scores"] = "fp32 (a score in another arithmetic is another score)"
    compiles, why = choose_compile(None, device)
    told["compile"] = f"{'yes' if compiles else 'no'} ({why.removeprefix('auto: ')})"
    return told
