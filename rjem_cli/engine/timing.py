"""How long a piece of work takes on a device, and how much memory it took."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch

from rjem_cli.engine.chains.moves import Network, Question, ask
from rjem_cli.engine.memory import physical_memory
from rjem_cli.engine.model.energy import energy
from rjem_cli.engine.room import Room

ROUNDS = 3  # at least; the first warms up
BESIDE_PASSES = 120_000_000  # bytes of a process for writers, pictures, and what they import: generate's, as measured
MOST_ROUNDS, ENOUGH = 10, 1.0  # where they are short: until so many seconds have passed


def usual_seconds(call: Callable[[], object], device: torch.device, most: int = MOST_ROUNDS) -> float:
    """The median of some calls but the first: of ROUNDS, or where they are short of more, `most` at most."""
    found: list[float] = []
    while len(found) < ROUNDS or (len(found) < most and sum(found) < ENOUGH):
        found.append(seconds_of(call, device))
    return statistics.median(found[1:])


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    synchronise(device)
    started = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - started


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fitting(network: Network, image_shape: tuple[int, int, int], room: Room, device: torch.device) -> int:
    """How many images fit into memory at once, `room.asked` at most, from one gradient."""

    room.at_once(lambda count: ask(network, [Question(torch.zeros(count, *image_shape, device=device), energy)]))
    return room.most


def pass_seconds(network: Network, image_shape: tuple[int, int, int], count: int, device: torch.device) -> float:
    """Of one gradient with respect to `count` images, for a network that gives logits."""
    x = torch.zeros(count, *image_shape, device=device)
    return usual_seconds(lambda: ask(network, [Question(x, energy)]), device)


def foreseen_bytes(device: torch.device) -> int | None:
    """The most that a call will have held, from a rehearsal of its network passes."""
    peak = peak_bytes(device)
    return peak + BESIDE_PASSES if peak is not None and device.type == "cpu" else peak


def total_bytes(device: torch.device) -> int | None:
    """The memory of a GPU, or of this machine; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return physical_memory()


def peak_bytes(device: torch.device) -> int | None:
    """The most memory so far: of a GPU, or on a CPU of this process; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
