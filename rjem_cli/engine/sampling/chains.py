"""Recorded Langevin chains, and the files that show them: energies of every step, a film strip, a GIF, final images."""

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rjem_cli.engine.batching import BatchSizer, concatenate
from rjem_cli.engine.callbacks import Log, noop
from rjem_cli.engine.data.annotations import LABELS_NAME
from rjem_cli.engine.data.images import to_pixels
from rjem_cli.engine.data.png import INK, PAPER, contact_sheet, png_bytes, side_by_side, write_images
from rjem_cli.engine.figures import energy_plot
from rjem_cli.engine.models.energy import energy, joint_energy
from rjem_cli.engine.sampling.generate import SampleJob
from rjem_cli.engine.sampling.pipeline import build_chain
from rjem_cli.engine.sampling.request import LABEL_COLUMNS, SampleRequest
from rjem_cli.engine.sampling.sgld import ChainState
from rjem_cli.files import csv_text, empty_output_folder, write_atomically, write_json

FILMED_CHAINS = 64  # chains whose images are recorded
BOX_SLACK = 1e-6
OUTPUT_FILES = re.compile(r"\d{6,}\.png|labels\.csv|chains\.json|energies\.(csv|png)|film\.png|chains\.gif")
CSV_COLUMNS = ("step", "chain", "energy", "joint_energy", "saturation")
STRIP_FRAMES, STRIP_CHAINS = 12, 16
GIF_COLUMNS, GIF_MILLISECONDS, LAST_FRAME_MILLISECONDS = 8, 120, 1500


@dataclass(frozen=True)
class Chains:
    """N chains of S steps, in blocks of `block_size`.

    energy, joint_energy, saturation: (S + 1, N), of the states before each step and after the last. left_at,
    invalid_at: for each chain the first state outside the box and the first that is not finite, or None. frames: uint8
    (F, at most FILMED_CHAINS, C, H, W), recorded at `frame_steps`. final: uint8 (N, C, H, W).
    """

    request: SampleRequest
    energy: np.ndarray
    joint_energy: np.ndarray
    saturation: np.ndarray
    left_at: list[int | None]
    invalid_at: list[int | None]
    frame_steps: list[int]
    frames: Tensor
    final: Tensor

    @property
    def rows(self) -> list[tuple[str, int, str, int]]:
        """(file, label, class, seed) of each chain."""
        return [self.request.row(index) for index in range(len(self.final))]


class ChainPictures(NamedTuple):
    """PNG bytes: the images of chains over their steps, and their energies."""

    film: bytes
    energies: bytes


# --- run and record ---


def run_chains(
    job: SampleJob, *, record: int, clamp: bool, log: Log = noop, on_progress: Callable[[int, int], None] = noop
) -> Chains:
    """Run the job's chains and record an image every `record` steps and of the last. `on_progress` gets the done and
    the total chain steps. Unless the block size was given, all chains start again in smaller blocks if memory is too
    small, which `log` reports."""
    steps, count = job.request.plan.sgld_steps, job.request.count
    frame_steps = sorted({*range(0, steps + 1, record), steps})

    def run(block_size: int) -> Chains:
        blocks = []
        for index_B in torch.split(job.request.indices(), block_size):

            def on_step(step: int, index_B: Tensor = index_B) -> None:
                on_progress(int(index_B[0]) * steps + (step + 1) * len(index_B), steps * count)

            blocks.append(run_block(job, index_B, frame_steps, clamp, on_step))
        stats, frames, final = concatenate(blocks)
        energy_SN, joint_energy_SN, saturation_SN, outside_SN, invalid_SN = stats.permute(2, 1, 0).numpy()
        return Chains(
            request=replace(job.request, block_size=block_size),
            energy=energy_SN,
            joint_energy=joint_energy_SN,
            saturation=saturation_SN,
            left_at=find_first_step(outside_SN),
            invalid_at=find_first_step(invalid_SN),
            frame_steps=frame_steps,
            frames=frames.transpose(0, 1),
            final=final,
        )

    if job.setup.config.block_size is not None:
        return run(job.request.block_size)
    return BatchSizer(job.request.block_size, log).run_largest(run)


def run_block(
    job: SampleJob, index_B: Tensor, frame_steps: list[int], clamp: bool, on_step: Callable[[int], None]
) -> tuple[Tensor, Tensor, Tensor]:
    """Run B chains at once. Returns, on the host, the values of `compute_stats` for each state (B, S + 1, 5), frames of
    chains below FILMED_CHAINS, uint8 (b, F, C, H, W), and final images, uint8 (B, C, H, W). The host waits for the
    device only when an image is recorded."""
    plan, device, logits_fn = job.request.plan, job.setup.model.device, job.setup.model.logits_fn
    labels_B, seeds_B = job.request.labels(index_B), (job.request.seed + index_B).to(device)
    device_labels_B, filmed = labels_B.to(device), max(0, FILMED_CHAINS - int(index_B[0]))
    stats, frames = [], []

    def record_state(step: int, x: Tensor, logits_BK: Tensor) -> None:
        energy_B = energy(logits_BK)
        joint_B = joint_energy(logits_BK, device_labels_B) if plan.conditional else energy_B
        stats.append(compute_stats(x, energy_B, joint_B))
        if step in frame_steps:
            frames.append(to_pixels(x[:filmed]).cpu())

    def callback(state: ChainState) -> None:
        record_state(state.step, state.x, state.logits_BK)
        on_step(state.step)

    x = (job.start.sampler >> build_chain(plan, logits_fn, clamp=clamp, callback=callback))(labels_B, seeds_B)
    with torch.no_grad():
        record_state(plan.sgld_steps, x, logits_fn(x))
    return torch.stack(stats, dim=1).cpu(), torch.stack(frames, dim=1), to_pixels(x).cpu()


def compute_stats(x: Tensor, energy_B: Tensor, joint_energy_B: Tensor) -> Tensor:
    """float (B, 5) for each chain: E(x), E(x, y), the share of components at or beyond -1 and 1, whether one is
    outside the box, and whether a value is not finite."""
    size = x.flatten(1).abs()
    finite_B = size.isfinite().all(dim=1) & energy_B.isfinite() & joint_energy_B.isfinite()
    saturation_B, outside_B = (size >= 1).float().mean(dim=1), (size > 1 + BOX_SLACK).any(dim=1)
    return torch.stack([energy_B, joint_energy_B, saturation_B, outside_B.float(), (~finite_B).float()], dim=1)


def find_first_step(flags_SN: np.ndarray) -> list[int | None]:
    """For each chain the first step with a nonzero flag, or None."""
    return [int(flags.argmax()) if flags.any() else None for flags in flags_SN.T]


# --- describe and draw ---


def describe_chains(chains: Chains) -> list[dict[str, Any]]:
    """One entry per chain, with the energies of every step. Values that are not finite become null: JSON has no NaN."""
    entries: list[dict[str, Any]] = []
    for chain, (_, label, class_name, seed) in enumerate(chains.rows):
        entry = {
            "chain": chain,
            "class": class_name,
            "label": label,
            "seed": seed,
            "left_box_at": chains.left_at[chain],
            "not_finite_from": chains.invalid_at[chain],
            "saturation": float(chains.saturation[-1, chain]),
            "energy": round_finite(chains.energy[:, chain]),
        }
        if chains.request.plan.conditional:
            entry["joint_energy"] = round_finite(chains.joint_energy[:, chain])
        entries.append(entry)
    return entries


def round_finite(values: np.ndarray) -> list[float | None]:
    return [round(float(value), 6) if np.isfinite(value) else None for value in values]


def format_energies(chains: Chains) -> Iterator[tuple[object, ...]]:
    """Rows of CSV_COLUMNS, ordered by step, then by chain."""
    for step, chain in np.ndindex(chains.energy.shape):
        joint = f"{chains.joint_energy[step, chain]:.6g}" if chains.request.plan.conditional else ""
        yield step, chain, f"{chains.energy[step, chain]:.6g}", joint, f"{chains.saturation[step, chain]:.4f}"


def render_chains(chains: Chains, init: str) -> ChainPictures:
    """The film strip and the plot of energies; `init` is the start's name for the title."""
    plan = chains.request.plan
    title = f"{len(chains.final)} chains from {init}, step size {plan.sgld.step_size:g}, noise {plan.sgld.noise_std:g}"
    names = []
    for (_, _, class_name, _), last in zip(chains.rows[:STRIP_CHAINS], chains.joint_energy[-1]):
        names.append(f"{class_name[:10]}  {f'{last:.1f}' if np.isfinite(last) else '-'}")
    return ChainPictures(
        film=png_bytes(draw_film_strip(chains.frames, chains.frame_steps, names)),
        energies=energy_plot(chains.joint_energy, title, "E(x, y)" if plan.conditional else "E(x)"),
    )


def draw_film_strip(frames: Tensor, steps: list[int], names: list[str]) -> Image.Image:
    """One row per chain after its name, one column per recorded step; frames uint8 (F, N, C, H, W). Columns are evenly
    spaced except for the last."""
    stride = -(-(len(frames) - 1) // (STRIP_FRAMES - 1)) or 1
    indices = sorted({*range(0, len(frames), stride), len(frames) - 1})
    columns = [(str(steps[index]), contact_sheet(frames[index, :STRIP_CHAINS], 1)) for index in indices]
    font, height = ImageFont.load_default(size=12), columns[0][1].height
    labels = Image.new("RGB", (max(int(font.getlength(name)) for name in names), height), PAPER)
    for row, name in enumerate(names):
        ImageDraw.Draw(labels).text((0, (row + 0.5) * height / len(names) - 7), name, fill=INK, font=font)
    return side_by_side([("step", labels), *columns])


def draw_animation(frames: Tensor, steps: list[int]) -> bytes:
    """A GIF of the frames, uint8 (F, N, C, H, W), each under its step. It rests on the last one."""
    columns = min(GIF_COLUMNS, frames.shape[1])
    sheets = [side_by_side([(f"step {step}", contact_sheet(frame, columns))]) for frame, step in zip(frames, steps)]
    first, *others = [sheet.convert("P", palette=Image.Palette.ADAPTIVE) for sheet in sheets]
    content = io.BytesIO()
    durations = [GIF_MILLISECONDS] * len(others) + [LAST_FRAME_MILLISECONDS]
    first.save(content, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)
    return content.getvalue()


# --- write ---


@contextlib.contextmanager
def open_chains_folder(folder: Path, meta: dict[str, Any], overwrite: bool) -> Iterator[None]:
    """As `empty_output_folder`."""
    request = "request", meta["request"]
    with empty_output_folder(folder, "-o", OUTPUT_FILES, "chains.json", request, overwrite):
        write_json(folder / "chains.json", {**meta, "complete": False})
        yield


def write_chains(folder: Path, chains: Chains, meta: dict[str, Any]) -> dict[str, Any]:
    """Write all files, chains.json last. Returns its content."""
    document = {**meta, "complete": True, "chains": describe_chains(chains)}
    pictures = render_chains(chains, meta["init"])
    write_atomically(folder / "energies.csv", csv_text([CSV_COLUMNS, *format_energies(chains)]))
    write_atomically(folder / "energies.png", pictures.energies)
    write_atomically(folder / "film.png", pictures.film)
    write_atomically(folder / "chains.gif", draw_animation(chains.frames, chains.frame_steps))
    write_atomically(folder / LABELS_NAME, csv_text([LABEL_COLUMNS, *chains.rows]))
    write_images(folder, [row[0] for row in chains.rows], chains.final)
    write_json(folder / "chains.json", document)
    return document
