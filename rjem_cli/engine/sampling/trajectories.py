"""Langevin chains that are watched: the energies of every step, the images of some, and the chains that went astray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rjem_cli.engine.chains.pgd import Logits
from rjem_cli.engine.chains.pipeline import SamplePlan, chain_of
from rjem_cli.engine.chains.sgld import ChainState
from rjem_cli.engine.chains.stages import Sampler
from rjem_cli.engine.data.images import to_pixels
from rjem_cli.engine.model.energy import energy, joint_energy
from rjem_cli.engine.room import put_together
from rjem_cli.engine.sampling.request import SampleRequest

FILMED = 64  # chains whose images are kept on the way
BOX_SLACK = 1e-6
NEVER = -1


class Look(NamedTuple):
    """What is kept of each state, (B,) each, on the device."""

    energy_B: Tensor
    joint_energy_B: Tensor
    saturation_B: Tensor  # share of components at or beyond the walls of the box
    outside_B: Tensor
    finite_B: Tensor


class Watched(NamedTuple):
    """A batch of chains, on the host, a row a chain: its looks, (B, S + 1) each; frames uint8 (min(B, filmed), F, C,
    H, W); final uint8 (B, C, H, W)."""

    energy: Tensor
    joint_energy: Tensor
    saturation: Tensor
    outside: Tensor
    finite: Tensor
    frames: Tensor
    final: Tensor


@dataclass(frozen=True)
class Trajectories:
    """N chains of S steps. Arrays (S + 1, N) belong to the states before each step and after the last; `frames` are
    uint8 (F, at most FILMED, C, H, W), taken after `frame_steps`; `final` uint8 (N, C, H, W). `left_at` and `lost_at`
    give the first state outside of the box, and the first that is not finite, or NEVER."""

    energy: np.ndarray
    joint_energy: np.ndarray
    saturation: np.ndarray
    left_at: np.ndarray
    lost_at: np.ndarray
    frame_steps: list[int]
    frames: Tensor
    final: Tensor

    @property
    def lost(self) -> list[int]:
        return np.nonzero(self.lost_at != NEVER)[0].tolist()


def run_chains(
    request: SampleRequest,
    start: Sampler,
    logits_of: Logits,
    *,
    record: int,
    clamp: bool,
    device: torch.device,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Trajectories:
    """The request's chains from `start`, an image kept every `record` steps and of the last. `report` hears how many
    chain steps are done, and of how many. `logits_of` must be frozen."""
    plan, first = request.plan, request.first
    frame_steps = sorted({*range(0, plan.sgld_steps + 1, record), plan.sgld_steps})

    def watched(index_B: Tensor) -> Watched:
        before = int(index_B[0]) - first

        def on_step(step: int) -> None:
            report(before * plan.sgld_steps + (step + 1) * len(index_B), plan.sgld_steps * (request.last - first))

        return run_batch(
            plan,
            start,
            logits_of,
            request.labels(index_B),
            request.seed + index_B,
            filmed=max(0, FILMED - before),
            frame_steps=frame_steps,
            clamp=clamp,
            device=device,
            on_step=on_step,
        )

    found = put_together([watched(index_B) for index_B in request.indices().split(request.block_size)])
    energies, joint_energies, saturation, outside, finite = (looks.numpy().T for looks in found[: len(Look._fields)])
    return Trajectories(
        energy=energies,
        joint_energy=joint_energies,
        saturation=saturation,
        left_at=first_true(outside),
        lost_at=first_true(finite == 0),
        frame_steps=frame_steps,
        frames=found.frames.transpose(0, 1),
        final=found.final,
    )


def run_batch(
    plan: SamplePlan,
    start: Sampler,
    logits_of: Logits,
    labels: Tensor,
    seeds: Tensor,
    *,
    filmed: int,
    frame_steps: list[int],
    clamp: bool,
    device: torch.device,
    on_step: Callable[[int], None],
) -> Watched:
    """All chains at once; frames of the first `filmed`. The host waits for the device when an image is kept, not
    otherwise."""
    looks: list[Look] = []
    frames: list[Tensor] = []
    newest: list[Tensor] = []  # logits of the last pass, whose gradient the chain takes itself

    def recorded(x: Tensor) -> Tensor:
        logits_BK = logits_of(x)
        newest[:] = [logits_BK.detach()]  # their graph would keep a second pass in memory
        return logits_BK

    def keep(step: int, x: Tensor) -> None:
        (logits_BK,) = newest
        joint_B = joint_energy(logits_BK, labels_B) if plan.conditional else energy(logits_BK)
        looks.append(look(x, energy(logits_BK), joint_B))
        if step in frame_steps:
            frames.append(to_pixels(x[:filmed]).cpu())

    def observe(state: ChainState) -> None:
        keep(state.step, state.x)
        on_step(state.step)

    labels_B, seeds_B = labels.to(device), seeds.to(device)
    x = (start >> chain_of(plan, recorded, clamp, observe))(labels, seeds_B)
    with torch.no_grad():
        recorded(x)
    keep(plan.sgld_steps, x)
    courses = [torch.stack(values, dim=1).float().cpu() for values in zip(*looks)]
    return Watched._make([*courses, torch.stack(frames, dim=1), to_pixels(x).cpu()])


def look(x: Tensor, energy_B: Tensor, joint_energy_B: Tensor) -> Look:
    size = x.detach().flatten(1).abs()
    return Look(
        energy_B=energy_B,
        joint_energy_B=joint_energy_B,
        saturation_B=(size >= 1).float().mean(dim=1),
        outside_B=(size > 1 + BOX_SLACK).any(dim=1),
        finite_B=size.isfinite().all(dim=1) & energy_B.isfinite() & joint_energy_B.isfinite(),
    )


def first_true(table: np.ndarray) -> np.ndarray:
    """The first row of each column that holds, or NEVER."""
    found = table.astype(bool)
    return np.where(found.any(axis=0), found.argmax(axis=0), NEVER)


def describe_chains(
    found: Trajectories, rows: list[tuple[str, int, str, int]], plan: SamplePlan
) -> list[dict[str, Any]]:
    """One entry a chain, energies of every step included. Values that are not finite become null: JSON has no NaN."""
    return [
        {
            "chain": chain,
            "class": class_name,
            "label": label,
            "seed": seed,
            "left_box_at": none_for_never(found.left_at[chain]),
            "not_finite_from": none_for_never(found.lost_at[chain]),
            "saturation": float(found.saturation[-1, chain]),
            "energy": finite_or_none(found.energy[:, chain]),
            **({"joint_energy": finite_or_none(found.joint_energy[:, chain])} if plan.conditional else {}),
        }
        for chain, (_, label, class_name, seed) in enumerate(rows)
    ]


def none_for_never(step: int) -> int | None:
    return None if step == NEVER else int(step)


def finite_or_none(values: np.ndarray) -> list[float | None]:
    return [round(float(value), 6) if np.isfinite(value) else None for value in values]


def csv_rows(found: Trajectories, plan: SamplePlan) -> Iterator[tuple[object, ...]]:
    """step, chain, E(x), E(x, y), saturation; a chain after the other within each step."""
    for step in range(len(found.energy)):
        for chain in range(found.energy.shape[1]):
            joint = f"{found.joint_energy[step, chain]:.6g}" if plan.conditional else ""
            yield step, chain, f"{found.energy[step, chain]:.6g}", joint, f"{found.saturation[step, chain]:.4f}"
