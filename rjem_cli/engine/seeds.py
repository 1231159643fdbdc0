"""Seeds derived from what they are for, so that a resumed run draws what the uninterrupted one would have drawn."""

from __future__ import annotations

import hashlib

import torch


def derived_seed(*parts: object) -> int:
    """A number below 2^63 that depends on every part: `derived_seed(run_seed, "batch", step)`."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def derived_generator(*parts: object, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(derived_seed(*parts))
