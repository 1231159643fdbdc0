"""How large the work is: full for GPUs, small for trying the script out on a CPU, tiny for its test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from rjem_cli.config.training import TrainConfig

NO_CHANGE = 1e-12  # a learning rate that changes no weights, so that nothing diverges


class Network(NamedTuple):
    depth: int
    width: int
    norm_layer: str

    def __str__(self) -> str:
        return f"WRN-{self.depth}-{self.width} {self.norm_layer}"

    def config(self, batch_size: int, precision: str, device: str, **options: Any) -> TrainConfig:
        buffer_size = options.pop("buffer_size", 2 * batch_size)
        return TrainConfig(
            **{**self._asdict(), "lr": NO_CHANGE, **options},
            batch_size=batch_size,
            buffer_size=buffer_size,
            precision=precision,
            device=device,
        )


PAPER, MIDDLE, NARROW = Network(28, 10, "batch"), Network(16, 4, "group"), Network(10, 2, "none")
LEAST = Network(10, 1, "batch")


@dataclass(frozen=True)
class Sizes:
    """`compiles`: also measure torch.compile. `norms`, `training_steps`: of the part precision."""

    networks: tuple[Network, ...] = (PAPER, MIDDLE, NARROW)
    speed_batches: tuple[int, ...] = (256, 64)
    memory_batches: tuple[int, ...] = (64, 256, 128, 32)
    lever_batch: int = 256
    graph_batch: int = 64
    chain_steps: int = 20
    rounds: int = 7
    norms: tuple[str, ...] = ("group", "batch")
    matrix_side: int = 8192
    samples: int = 128
    training_steps: int = 200
    pgd_steps: int = 15
    sgld_steps: int = 10
    buffer_size: int = 10_000
    largest_batch: int = 65_536
    compiles: bool = True
    processes: int = 2
    rank_network: Network = MIDDLE
    rank_batch: int = 256
    rank_steps: int = 40


SMALL = Sizes(
    networks=(LEAST, LEAST._replace(norm_layer="group")),
    speed_batches=(8, 4),
    memory_batches=(4, 8),
    lever_batch=8,
    graph_batch=4,
    chain_steps=10,
    rounds=3,
    matrix_side=512,
    samples=16,
    training_steps=20,
    pgd_steps=2,
    sgld_steps=2,
    buffer_size=64,
    largest_batch=64,
    rank_network=LEAST._replace(norm_layer="group"),
    rank_batch=16,
    rank_steps=8,
)
TINY = Sizes(
    **{
        **SMALL.__dict__,
        "networks": (LEAST,),
        "speed_batches": (4,),
        "rounds": 1,
        "norms": ("group",),
        "matrix_side": 128,
        "samples": 4,
        "training_steps": 4,
        "compiles": False,
        "processes": 1,
    }
)
SIZES = {"full": Sizes(), "small": SMALL, "tiny": TINY}
