"""Samples from a checkpoint, as a stream. Sample i depends on seed + i only.

The network always sees whole blocks of `block_size` images, and the sample with seed s has the place s modulo that in
them. So the arithmetic of a sample is the same to the last bit whatever the batch size, the shard or the
place where an earlier call stopped; what a block computes beyond the samples that are wanted is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rjem_cli.engine.chains.stages import Sampler
from rjem_cli.engine.data.images import to_pixels
from rjem_cli.engine.ranks import ALONE, Ranks
from rjem_cli.engine.sampling.request import SampleRequest
from rjem_cli.errors import RjemError

SMALLER = "try a smaller --sgld-step-size or --noise-std, or in fp16 --precision fp32"  # where a chain is not finite


class SampleBatch(NamedTuple):
    """Samples first .. first + B: pixels uint8 (B, C, H, W) on the host."""

    first: int
    pixels: Tensor


def sample_blocks(
    sampler: Sampler, request: SampleRequest, first: int, last: int, device: torch.device, ranks: Ranks = ALONE
) -> Iterator[Tensor]:
    """float (b, C, H, W): the wanted part of each block of samples first .. last - 1, in order."""
    if first >= last:
        return
    size, start = request.block_size, request.seed + first

    def draw(block: int) -> Tensor:
        seeds = torch.arange(block, block + size)
        return sampler(request.labels(seeds - request.seed), seeds.to(device, non_blocking=True))

    blocks = range(start - start % size, request.seed + last, size)
    for block, x in zip(blocks, ranks.spread(draw, blocks)):
        yield x[max(0, start - block) : request.seed + last - block]


def generate(
    sampler: Sampler,
    request: SampleRequest,
    *,
    skip: int,
    batch_size: int,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> Iterator[SampleBatch]:
    """The request's samples but for the first `skip`. The host waits for the device once a batch. Raises RjemError
    for a sample that is not finite, by its index."""

    def handed_over(first: int, pixels: Tensor, finite_B: Tensor) -> SampleBatch:
        return ranks.jointly(lambda: hand_over(first, pixels, finite_B))

    first = request.first + skip
    pixels, finite = [], []
    for x in sample_blocks(sampler, request, first, request.last, device, ranks):
        pixels.append(to_pixels(x))
        finite.append(x.isfinite().flatten(1).all(dim=1))
        if sum(map(len, pixels)) < batch_size:
            continue
        ready, sound = torch.cat(pixels), torch.cat(finite)
        whole = len(ready) - len(ready) % batch_size
        for part, its_finite in zip(ready[:whole].split(batch_size), sound[:whole].split(batch_size)):
            yield handed_over(first, part, its_finite)
            first += len(part)
        pixels, finite = [ready[whole:]], [sound[whole:]]
    if sum(map(len, pixels)):
        yield handed_over(first, torch.cat(pixels), torch.cat(finite))


def until(stop: Callable[[], bool], batches: Iterator[SampleBatch]) -> Iterator[SampleBatch]:
    """The batches, up to and with the one in whose making `stop` became true."""
    for batch in batches:
        yield batch
        if stop():
            return


def hand_over(first: int, pixels: Tensor, finite_B: Tensor) -> SampleBatch:
    broken = (~finite_B).nonzero().flatten().tolist()
    if broken:
        raise RjemError(f"sample {first + broken[0]} is not finite; {SMALLER}")
    return SampleBatch(first, pixels.cpu())
