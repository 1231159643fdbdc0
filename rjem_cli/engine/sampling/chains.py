"""Recorded Langevin chains: the energies of every step, the images of some, and the chains that left the box."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rjem_cli.engine.batching import BatchSizer, concatenate
from rjem_cli.engine.callbacks import Log, noop
from rjem_cli.engine.data.images import to_pixels
from rjem_cli.engine.models.energy import energy, joint_energy
from rjem_cli.engine.sampling.generate import SampleJob
from rjem_cli.engine.sampling.pipeline import SamplePlan, build_chain
from rjem_cli.engine.sampling.sgld import ChainState

FILMED = 64  # chains whose images are recorded
BOX_SLACK = 1e-6
NEVER = -1


class StateStats(NamedTuple):
    """What is recorded of each state, (B,) each, on the device."""

    energy_B: Tensor
    joint_energy_B: Tensor
    saturation_B: Tensor  # share of components at or beyond the walls of the box
    outside_B: Tensor
    finite_B: Tensor


class ChainBatch(NamedTuple):
    """B chains, on the host: the stats of each state, (B, S + 1) each; frames uint8 (min(B, filmed), F, C, H, W); final
    uint8 (B, C, H, W)."""

    energy: Tensor
    joint_energy: Tensor
    saturation: Tensor
    outside: Tensor
    finite: Tensor
    frames: Tensor
    final: Tensor


@dataclass(frozen=True)
class Chains:
    """N chains of S steps, in blocks of `block_size`. Arrays (S + 1, N) belong to the states before each step and after
    the last; `frames` are uint8 (F, at most FILMED, C, H, W), taken after `frame_steps`; `final` uint8 (N, C, H, W).
    `left_at` and `invalid_at` (N,) are the first state outside of the box, and the first that is not finite, or
    NEVER."""

    energy: np.ndarray
    joint_energy: np.ndarray
    saturation: np.ndarray
    left_at: np.ndarray
    invalid_at: np.ndarray
    frame_steps: list[int]
    frames: Tensor
    final: Tensor
    block_size: int

    @property
    def invalid(self) -> list[int]:
        """Chains that are not finite at the end."""
        return np.nonzero(self.invalid_at != NEVER)[0].tolist()


def run_chains(
    job: SampleJob,
    *,
    record: int,
    clamp: bool,
    log: Log = noop,
    on_progress: Callable[[int, int], None] = noop,
) -> Chains:
    """The job's chains, with an image every `record` steps and of the last. `on_progress` is told how many chain steps
    are done, and of how many. If memory is too small, all chains are run again in smaller blocks, which `log` reports,
    unless the block size was given."""
    given = job.setup.config.block_size
    if given is not None:
        return run_blocks(job, job.request.block_size, record, clamp, on_progress)
    batches = BatchSizer(job.request.block_size, log)
    return batches.run_largest(lambda size: run_blocks(job, size, record, clamp, on_progress))


def run_blocks(
    job: SampleJob, block_size: int, record: int, clamp: bool, on_progress: Callable[[int, int], None]
) -> Chains:
    request = replace(job.request, block_size=block_size)
    steps, first = request.plan.sgld_steps, request.first
    frame_steps = sorted({*range(0, steps + 1, record), steps})

    def run(index_B: Tensor) -> ChainBatch:
        done = int(index_B[0]) - first

        def on_step(step: int) -> None:
            on_progress(done * steps + (step + 1) * len(index_B), steps * (request.last - first))

        return run_block(job, index_B, max(0, FILMED - done), frame_steps, clamp, on_step)

    batch = concatenate([run(index_B) for index_B in request.indices().split(block_size)])
    energies, joint_energies, saturation, outside, finite = (
        stats.numpy().T for stats in batch[: len(StateStats._fields)]
    )
    return Chains(
        energy=energies,
        joint_energy=joint_energies,
        saturation=saturation,
        left_at=first_true(outside),
        invalid_at=first_true(finite == 0),
        frame_steps=frame_steps,
        frames=batch.frames.transpose(0, 1),
        final=batch.final,
        block_size=block_size,
    )


def run_block(
    job: SampleJob,
    index_B: Tensor,
    filmed: int,
    frame_steps: list[int],
    clamp: bool,
    on_step: Callable[[int], None],
) -> ChainBatch:
    """All chains at once; frames of the first `filmed`. The host waits for the device only when an image is
    recorded."""
    plan, device, logits_of = job.request.plan, job.setup.runtime.device, job.setup.logits_of
    labels, seeds_B = job.request.labels(index_B), (job.request.seed + index_B).to(device)
    labels_B = labels.to(device)
    stats: list[StateStats] = []
    frames: list[Tensor] = []

    def record_state(step: int, x: Tensor, logits_BK: Tensor) -> None:
        joint_B = joint_energy(logits_BK, labels_B) if plan.conditional else energy(logits_BK)
        stats.append(compute_stats(x, energy(logits_BK), joint_B))
        if step in frame_steps:
            frames.append(to_pixels(x[:filmed]).cpu())

    def callback(state: ChainState) -> None:
        record_state(state.step, state.x, state.logits_BK)
        on_step(state.step)

    x = (job.start.sampler >> build_chain(plan, logits_of, clamp, callback))(labels, seeds_B)
    with torch.no_grad():
        record_state(plan.sgld_steps, x, logits_of(x))
    histories = [torch.stack(values, dim=1).float().cpu() for values in zip(*stats)]
    return ChainBatch._make([*histories, torch.stack(frames, dim=1), to_pixels(x).cpu()])


def compute_stats(x: Tensor, energy_B: Tensor, joint_energy_B: Tensor) -> StateStats:
    size = x.detach().flatten(1).abs()
    return StateStats(
        energy_B=energy_B,
        joint_energy_B=joint_energy_B,
        saturation_B=(size >= 1).float().mean(dim=1),
        outside_B=(size > 1 + BOX_SLACK).any(dim=1),
        finite_B=size.isfinite().all(dim=1) & energy_B.isfinite() & joint_energy_B.isfinite(),
    )


def first_true(table: np.ndarray) -> np.ndarray:
    """The first true row of each column, or NEVER."""
    is_true = table.astype(bool)
    return np.where(is_true.any(axis=0), is_true.argmax(axis=0), NEVER)


def describe_chains(chains: Chains, rows: list[tuple[str, int, str, int]], plan: SamplePlan) -> list[dict[str, Any]]:
    """One entry per chain, with the energies of every step. Values that are not finite become null: JSON has no NaN."""
    return [
        {
            "chain": chain,
            "class": class_name,
            "label": label,
            "seed": seed,
            "left_box_at": none_for_never(chains.left_at[chain]),
            "not_finite_from": none_for_never(chains.invalid_at[chain]),
            "saturation": float(chains.saturation[-1, chain]),
            "energy": finite_or_none(chains.energy[:, chain]),
            **({"joint_energy": finite_or_none(chains.joint_energy[:, chain])} if plan.conditional else {}),
        }
        for chain, (_, label, class_name, seed) in enumerate(rows)
    ]


def none_for_never(step: int) -> int | None:
    return None if step == NEVER else int(step)


def finite_or_none(values: np.ndarray) -> list[float | None]:
    return [round(float(value), 6) if np.isfinite(value) else None for value in values]


def csv_rows(chains: Chains, plan: SamplePlan) -> Iterator[tuple[object, ...]]:
    """(step, chain, E(x), E(x, y), saturation), ordered by step, then by chain."""
    for step in range(len(chains.energy)):
        for chain in range(chains.energy.shape[1]):
            joint = f"{chains.joint_energy[step, chain]:.6g}" if plan.conditional else ""
            yield step, chain, f"{chains.energy[step, chain]:.6g}", joint, f"{chains.saturation[step, chain]:.4f}"
