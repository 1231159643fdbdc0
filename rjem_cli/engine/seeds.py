"""Seeds derived from their purpose, so that a resumed run draws the same numbers as an uninterrupted one."""

import hashlib

import torch


def derived_seed(*parts: object) -> int:
    """A hash of all parts as a number below 2^63: `derived_seed(run_seed, "batch", step)`."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def derived_generator(*parts: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator with the derived seed."""
    return torch.Generator(device).manual_seed(derived_seed(*parts))
