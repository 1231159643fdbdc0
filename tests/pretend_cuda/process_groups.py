"""torch.distributed with NCCL. Gloo moves all tensors; each group has the rules of the backend that was asked for."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from tests.pretend_cuda.placement import is_on_device
from tests.pretend_cuda.tensor_patches import Patches, replaced

if TYPE_CHECKING:
    from tests.pretend_cuda.device import PretendCuda

INIT_PROCESS_GROUP, NEW_GROUP = dist.init_process_group, dist.new_group
INIT_DDP, PRE_FORWARD = DistributedDataParallel._ddp_init_helper, DistributedDataParallel._pre_forward
COLLECTIVES = (dist.all_reduce, dist.all_gather, dist.broadcast)


class ProcessGroups:
    """`backends`: those that were asked for, by group; None is the default group."""

    def __init__(self, cuda: PretendCuda):
        self.cuda = cuda
        self.backends: dict[Any, str] = {}

    def patches(self) -> Patches:
        yield replaced(dist, "init_process_group", self.init_process_group)
        yield replaced(dist, "new_group", self.new_group)
        for collective in COLLECTIVES:
            yield replaced(dist, collective.__name__, self.checked(collective))
        yield replaced(
            DistributedDataParallel, "_ddp_init_helper", lambda *args, **kwargs: self.init_ddp(*args, **kwargs)
        )
        yield replaced(
            DistributedDataParallel, "_pre_forward", lambda *args, **kwargs: self.pre_forward(*args, **kwargs)
        )

    def init_process_group(self, backend: str | None = None, *args: Any, device_id: Any = None, **kwargs: Any) -> None:
        INIT_PROCESS_GROUP("gloo", *args, **kwargs)
        self.backends[None] = backend or "cuda:nccl,cpu:gloo"

    def new_group(self, *args: Any, backend: str | None = None, **kwargs: Any) -> Any:
        group = NEW_GROUP(*args, backend="gloo", **kwargs)
        self.backends[group] = backend or self.backends[None]
        return group

    def checked(self, collective: Any) -> Any:
        signature = inspect.signature(collective)

        def call(*args: Any, **kwargs: Any) -> Any:
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self.check(signature.bind(*args, **kwargs).arguments.get("group"), tensors)
            return collective(*args, **kwargs)

        return call

    def check(self, group: Any, tensors: list[Tensor]) -> None:
        """Raises RuntimeError for tensors on the host in a group of NCCL. Gloo copies tensors on a device to the
        host."""
        backend = self.backends.get(group, self.backends.get(None, ""))
        if "gloo" not in backend and not all(map(is_on_device, tensors)):
            raise RuntimeError("No backend type associated with device type cpu")
        if "nccl" not in backend and any(map(is_on_device, tensors)):
            self.cuda.record_sync("gloo")

    def init_ddp(self, ddp: Any, parameters: list[Tensor], *args: Any, **kwargs: Any) -> Any:
        """Its reducer creates buckets on the device of the parameters."""
        self.check(ddp.process_group, parameters)
        with self.cuda.creating_on(self.cuda.current if all(map(is_on_device, parameters)) else None):
            return INIT_DDP(ddp, parameters, *args, **kwargs)

    def pre_forward(self, ddp: Any, *inputs: Any, **kwargs: Any) -> Any:
        with self.cuda.creating_on(self.cuda.current if ddp.device_type == "cuda" else None):
            return PRE_FORWARD(ddp, *inputs, **kwargs)
