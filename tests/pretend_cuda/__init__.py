"""A pretend CUDA device: a program that asks for `cuda` runs on the CPU, with real numbers, under the rules of CUDA.

    with PretendCuda() as cuda:
        x = torch.zeros(3, device="cuda")
        x + torch.zeros(3)  # RuntimeError: Expected all tensors to be on the same device, ...
        float(x.sum())
    cuda.record.syncs  # [HostSync(kind="item", caller="file.py:4", bytes=4)]

A tensor on the device is a CPU tensor whose storage carries the device's index (placement.py). Python code sees the
devices, generators, torch.cuda and torch.distributed of a machine with GPUs (the other modules). A dispatch mode sees
each operation below autograd (rules.py): it refuses operations across devices, and records what makes the host wait,
copies, kernel launches, the arithmetic of products, and copies between memory layouts (record.py).

To run a program on the device: `python -m tests.pretend_cuda MODULE ARGUMENTS`.

Not covered: the numbers of CUDA kernels, their speed and memory, races between streams, NCCL, torch.compile, and
operations of other threads.
"""

from tests.pretend_cuda.device import PretendCuda
from tests.pretend_cuda.record import DeviceCopy, HostSync, LayoutCopy, Product, Record

__all__ = ["DeviceCopy", "HostSync", "LayoutCopy", "PretendCuda", "Product", "Record"]
