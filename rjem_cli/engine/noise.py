"""Random numbers that need no stored state: seeds derived from their purpose, and noise per sample.

The noise is Philox4x32-10 (Salmon et al. 2011) in tensor operations.

A draw is a function of the sample's seed, the stream, the step and the element only. So sample i has the same noise in
any batch, on any shard and after a resume. No random state is stored, and there is no loop over images.
"""

import hashlib
import math

import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF
# Independent draws for one sample. The streams of an attack are for an image of a data set.
PRIOR_STREAM, CHAIN_STREAM, START_STREAM, ATTACK_STREAM, TARGET_STREAM = range(5)


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds. All tensors are int64, hold 32-bit words and broadcast against each other. Returns four words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 wraps around; the bits are those of the unsigned product
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & MASK) ^ c1 ^ k0,
            product1 & MASK,
            ((product0 >> 32) & MASK) ^ c3 ^ k1,
            product0 & MASK,
        )
        k0, k1 = (k0 + KEY_INCREMENTS[0]) & MASK, (k1 + KEY_INCREMENTS[1]) & MASK
    return c0, c1, c2, c3


def unit_interval(words: Tensor) -> Tensor:
    """32-bit words to float32 in (0, 1], on a grid of 2^-24."""
    return ((words >> 8) + 1).float() * 2.0**-24


def random_words(seeds_B: Tensor, size: int, stream: int, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four tensors of 32-bit words, int64 (B, ceil(size / 4)). seeds_B: int64 (B,), not negative."""
    groups = torch.arange((size + 3) // 4, device=seeds_B.device)[None, :]
    zero = torch.zeros_like(groups)
    key = ((seeds_B & MASK)[:, None], (seeds_B >> 32)[:, None])
    return philox((groups, zero + step, zero + stream, zero), key)


def uniform(seeds_B: Tensor, shape: tuple[int, ...], stream: int, step: int = 0) -> Tensor:
    """Uniform draws from (0, 1], float32 (B, *shape)."""
    size = math.prod(shape)
    words = torch.stack(random_words(seeds_B, size, stream, step), dim=2)
    return unit_interval(words).flatten(1)[:, :size].reshape(-1, *shape)


def standard_normal(seeds_B: Tensor, shape: tuple[int, ...], stream: int, step: int = 0) -> Tensor:
    """Standard normal draws, float32 (B, *shape), by the transform of Box and Muller (1958)."""
    size = math.prod(shape)
    w0, w1, w2, w3 = random_words(seeds_B, size, stream, step)
    normals = []
    for radius_word, angle_word in ((w0, w1), (w2, w3)):
        radius = torch.sqrt(-2 * torch.log(unit_interval(radius_word)))
        angle = 2 * math.pi * unit_interval(angle_word)
        normals += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return torch.stack(normals, dim=2).flatten(1)[:, :size].reshape(-1, *shape)


def derived_seed(*parts: object) -> int:
    """A hash of all parts as a number below 2^63: `derived_seed(run_seed, "batch", step)`."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def derived_generator(*parts: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator with the derived seed."""
    return torch.Generator(device).manual_seed(derived_seed(*parts))
