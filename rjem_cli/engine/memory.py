"""The memory of this machine."""

from __future__ import annotations

import os


def physical_memory() -> int | None:
    """Physical memory in bytes, or None where the system does not report it (Windows)."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
