"""torch.cuda, torch.accelerator and torch.distributed as on a machine with GPUs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from tests.pretend_cuda.cuda_graphs import PretendGraph, graph
from tests.pretend_cuda.process_groups import ProcessGroups
from tests.pretend_cuda.tensor_patches import Patches, replaced

if TYPE_CHECKING:
    from tests.pretend_cuda.device import PretendCuda

NAME, CAPABILITY = "Pretend GPU", (9, 0)
RNG_STATE_BYTES = 16


def cuda_patches(cuda: PretendCuda) -> Patches:
    for name, function in {**queries(cuda), **actions(cuda), **random_state()}.items():
        yield replaced(torch.cuda, name, function)
    for name, function in random_state().items():
        yield replaced(torch.cuda.random, name, function)
    for name, function in accelerator(cuda).items():
        yield replaced(torch.accelerator, name, function)
    yield replaced(torch.backends.cuda, "is_built", lambda: True)
    yield from ProcessGroups(cuda).patches()


def queries(cuda: PretendCuda) -> dict[str, Any]:
    properties = SimpleNamespace(
        name=NAME, total_memory=cuda.memory, major=CAPABILITY[0], minor=CAPABILITY[1], multi_processor_count=132
    )
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: cuda.device_count,
        "current_device": lambda: cuda.current,
        "get_device_name": lambda device=None: NAME,
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: CAPABILITY,
        "is_bf16_supported": lambda including_emulation=True: True,
        "mem_get_info": lambda device=None: (cuda.memory, cuda.memory),
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "max_memory_reserved": lambda device=None: 0,
        "is_current_stream_capturing": lambda: cuda.graph is not None,
    }


def actions(cuda: PretendCuda) -> dict[str, Any]:
    def synchronize(device: Any = None) -> None:
        cuda.record_sync("synchronize")

    def set_device(device: Any) -> None:
        index = device if isinstance(device, int) else torch.device(device).index
        cuda.current = cuda.current if index is None else index

    @contextlib.contextmanager
    def device_context(device: Any) -> Iterator[None]:
        before = cuda.current
        set_device(device)
        try:
            yield
        finally:
            cuda.current = before

    def stream(*args: Any, **kwargs: Any) -> SimpleNamespace:
        nothing = {name: lambda *args: None for name in ("wait_stream", "wait_event", "record_event")}
        state = {"device_index": cuda.current, "is_capturing": lambda: False}
        return SimpleNamespace(synchronize=synchronize, **state, **nothing)

    def event(*args: Any, **kwargs: Any) -> SimpleNamespace:
        return SimpleNamespace(
            synchronize=synchronize, record=lambda stream=None: None, wait=lambda stream=None: None, query=lambda: False
        )

    return {
        "_lazy_init": lambda: None,
        "set_device": set_device,
        "device": device_context,
        "synchronize": synchronize,
        "current_stream": stream,
        "default_stream": stream,
        "Stream": stream,
        "Event": event,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device=None: None,
        "stream": lambda stream: contextlib.nullcontext(),
        "CUDAGraph": partial(PretendGraph, cuda),
        "graph": graph,
    }


def random_state() -> dict[str, Any]:
    """Of the default generator, which is the CPU's."""
    return {
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device="cuda": torch.zeros(RNG_STATE_BYTES, dtype=torch.uint8),
        "set_rng_state": lambda state, device="cuda": None,
    }


def accelerator(cuda: PretendCuda) -> dict[str, Any]:
    functions = actions(cuda)
    return {
        "current_accelerator": lambda check_available=False: torch.device("cuda"),
        "is_available": lambda: True,
        "device_count": lambda: cuda.device_count,
        "current_device_index": lambda: cuda.current,
        "current_stream": functions["current_stream"],
        "synchronize": functions["synchronize"],
    }
