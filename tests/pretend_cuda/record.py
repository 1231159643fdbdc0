"""What the device records."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import NamedTuple

HERE = os.path.dirname(__file__)
LIBRARIES = (os.sep + "torch" + os.sep, os.sep + "contextlib.py")


class HostSync(NamedTuple):
    """The host waited for the device."""

    kind: str
    caller: str
    bytes: int = 0


class DeviceCopy(NamedTuple):
    """A copy between host and device; `direction` is h2d or d2h."""

    direction: str
    bytes: int
    non_blocking: bool
    pinned: bool
    caller: str


class Product(NamedTuple):
    """A matrix product or convolution; `arithmetic` is fp64, fp32, tf32, bf16 or fp16."""

    operation: str
    arithmetic: str
    caller: str


class LayoutCopy(NamedTuple):
    """An input that a CUDA kernel copies first, because it needs another memory format."""

    operation: str
    bytes: int
    caller: str


@dataclass
class Record:
    """Everything in order; `launches` counts kernels by operation."""

    syncs: list[HostSync] = field(default_factory=list)
    copies: list[DeviceCopy] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    layout_copies: list[LayoutCopy] = field(default_factory=list)
    launches: Counter[str] = field(default_factory=Counter)

    @property
    def launch_count(self) -> int:
        return self.launches.total()

    @property
    def arithmetics(self) -> set[str]:
        """Of all products."""
        return {product.arithmetic for product in self.products}

    def syncs_by_file(self) -> dict[tuple[str, str], int]:
        """How often each (kind, file) synchronized."""
        return dict(Counter((sync.kind, sync.caller.rpartition(":")[0]) for sync in self.syncs))

    def summary(self) -> Iterator[str]:
        """Lines for a person: totals, then syncs, products and layout copies with their callers, the most frequent
        first."""
        yield (
            f"pretend CUDA: {self.launch_count} launches, {len(self.syncs)} syncs, {len(self.copies)} copies, "
            f"{len(self.layout_copies)} layout copies"
        )
        for title, rows in {
            "sync": Counter((sync.kind, sync.caller) for sync in self.syncs),
            "product": Counter((product.arithmetic, product.caller) for product in self.products),
            "layout copy": Counter((copy.operation, copy.caller) for copy in self.layout_copies),
        }.items():
            for (kind, caller), count in rows.most_common():
                yield f"{title:12}{count:8d}  {kind:28}{caller}"


def find_caller(package: str) -> str:
    """file:line of the innermost frame in `package`, relative to it; else of the innermost frame outside PyTorch and
    this device."""
    folder, outside = os.sep + package + os.sep, None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if folder in path:
            return f"{path.rpartition(folder)[2]}:{frame.f_lineno}"
        if outside is None and not path.startswith((HERE, "<")) and not any(part in path for part in LIBRARIES):
            outside = f"{os.path.basename(path)}:{frame.f_lineno}"
        frame = frame.f_back
    return outside or "unknown"
