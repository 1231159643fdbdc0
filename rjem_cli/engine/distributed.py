"""The processes of one training run, as torchrun starts them. A process on its own is rank 0 of 1 and sends nothing.

The main process (rank 0) writes files and reports. Each process computes its rows of a batch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from rjem_cli.errors import ConfigError, PeerLostError, is_out_of_memory

if TYPE_CHECKING:
    from torch import Tensor

WAIT_TIMEOUT = timedelta(hours=6)  # over gloo: the main process writes and evaluates alone, while the others wait
STEP_TIMEOUT = timedelta(minutes=10)  # over NCCL: within a training step all processes arrive at about the same time

T = TypeVar("T")


@dataclass(frozen=True)
class Distributed:
    """This process among `world_size`. Collective calls raise PeerLostError if another process has ended. `gpu_group`:
    the process group of tensors on GPUs; None without GPUs."""

    rank: int = 0
    world_size: int = 1
    gpu_group: Any = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def local_slice(self, count: int) -> slice:
        """This process's rows of `count`, which must be divisible by the number of processes."""
        size = count // self.world_size
        return slice(self.rank * size, (self.rank + 1) * size)

    def local_rows(self, x: Tensor) -> Tensor:
        return x[self.local_slice(len(x))]

    def all_gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in their order: the inverse of `local_rows`."""
        if self.world_size == 1:
            return rows
        import torch
        import torch.distributed as dist

        parts = [torch.empty_like(rows) for _ in range(self.world_size)]
        with peer_errors():
            dist.all_gather(parts, rows.contiguous(), group=self.gpu_group if rows.is_cuda else None)
        return torch.cat(parts)

    def mean(self, x: Tensor) -> Tensor:
        """The mean of x over all processes, with the same bits in each."""
        if self.world_size > 1:
            import torch.distributed as dist

            with peer_errors():
                dist.all_reduce(x, group=self.gpu_group if x.is_cuda else None)
        return x / self.world_size

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process."""
        if self.world_size == 1:
            return flag
        import torch

        return bool(self.mean(torch.tensor(float(flag))) > 0)

    def broadcast(self, value: T) -> T:
        """The main process's value, which must be picklable."""
        values = [value]
        if self.world_size > 1:
            import torch.distributed as dist

            with peer_errors():
                dist.broadcast_object_list(values, src=0, device=None)
        return values[0]

    def barrier(self) -> None:
        """Wait for all processes."""
        self.any(False)


SINGLE = Distributed()


def is_distributed() -> bool:
    """Whether torchrun started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and {"RANK", "LOCAL_RANK", "MASTER_ADDR"} <= os.environ.keys()


def rank_from_environment() -> int:
    """This process's rank, also before it has joined the others; 0 without torchrun."""
    return int(os.environ["RANK"]) if is_distributed() else 0


def world_size_from_environment() -> int:
    return int(os.environ["WORLD_SIZE"]) if is_distributed() else 1


def select_gpu() -> bool:
    """Use the GPU of this process's local rank; False if there is none. Raises ConfigError for more processes than
    GPUs."""
    import torch

    gpus, processes = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if 0 < gpus < processes:
        raise ConfigError(
            f"{processes} processes but {gpus} GPUs on this machine; start one process per GPU, or hide the GPUs: "
            "CUDA_VISIBLE_DEVICES="
        )
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return gpus > 0


@contextlib.contextmanager
def process_group() -> Iterator[Distributed]:
    """Join the processes that torchrun started; SINGLE without torchrun. Raises ConfigError for more processes than
    GPUs, PeerLostError if the others cannot be reached."""
    if not is_distributed():
        yield SINGLE
        return
    import torch.distributed as dist

    # a failed call over NCCL then raises an error; by default PyTorch aborts the process from another thread
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    has_gpus = select_gpu()
    try:
        with peer_errors():
            dist.init_process_group("gloo", timeout=WAIT_TIMEOUT)
            gpu_group = dist.new_group(backend="nccl", timeout=STEP_TIMEOUT) if has_gpus else None
            yield Distributed(dist.get_rank(), dist.get_world_size(), gpu_group)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextlib.contextmanager
def peer_errors() -> Iterator[None]:
    """Raises PeerLostError for a failed collective call."""
    import torch.distributed as dist

    try:
        yield
    except RuntimeError as error:
        from_peers = isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)
        if is_out_of_memory(error) or not from_peers:
            raise
        raise PeerLostError(
            "another process of this run has ended or does not answer; resume the run with --resume"
        ) from None
