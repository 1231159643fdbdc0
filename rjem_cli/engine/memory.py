"""The memory of this machine, and how much of it this process uses."""

import os
import sys

import torch

PROCESS_BYTES = 120_000_000  # on top of network passes: writers, figures and their imports, measured for generate


def estimated_bytes(device: torch.device) -> int | None:
    """The peak memory of a call in bytes, estimated after a few of its network passes; None if unknown."""
    peak = peak_bytes(device)
    return peak + PROCESS_BYTES if peak is not None and device.type == "cpu" else peak


def total_bytes(device: torch.device) -> int | None:
    """The memory of a GPU, or of this machine, in bytes; None if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return physical_memory()


def physical_memory() -> int | None:
    """Physical memory in bytes; None if the system does not report it (Windows)."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def peak_bytes(device: torch.device) -> int | None:
    """The peak memory so far of this process, in bytes; None if the system does not report it. On a GPU it is what
    PyTorch reserved, which includes the memory of CUDA graphs."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
