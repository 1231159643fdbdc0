"""The memory of this machine, and how much of it this process uses."""

import os
import sys
from pathlib import Path

import torch

CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")  # in bytes
PROCESS_BYTES = 120_000_000  # on top of network passes: writers, figures and their imports, measured for generate


def estimated_bytes(device: torch.device) -> int | None:
    """The peak memory of a call in bytes, estimated after a few of its network passes; None if unknown."""
    peak = peak_bytes(device)
    return peak + PROCESS_BYTES if peak is not None and device.type == "cpu" else peak


def total_bytes(device: torch.device) -> int | None:
    """The memory of a GPU, or `memory_limit()`."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return memory_limit()


def memory_limit() -> int | None:
    """Physical memory, or what a container may use of it, in bytes; None if the system does not report it (Windows)."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    try:
        return min(physical, int(CONTAINER_LIMIT.read_text(encoding="ascii")))
    except (OSError, ValueError):  # no limit ("max"), or another system
        return physical


def peak_bytes(device: torch.device) -> int | None:
    """The peak memory so far of this process, in bytes; None if the system does not report it. On a GPU it is what
    PyTorch reserved, which includes the memory of CUDA graphs."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
