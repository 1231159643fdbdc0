"""Watched chains as files: data, plot, film strip, GIF, and the images they ended as."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rjem_cli.engine.data.csv_rows import csv_text
from rjem_cli.engine.data.png import INK, PAPER, contact_sheet, png_bytes, side_by_side, write_images
from rjem_cli.engine.figures import energy_plot
from rjem_cli.engine.sampling.chains import Chains, csv_rows, describe_chains
from rjem_cli.engine.sampling.request import LABEL_COLUMNS, SampleRequest
from rjem_cli.errors import ConfigError
from rjem_cli.files import claimed_folder, empty_own_folder, write_atomically

OUR_NAMES = re.compile(r"\d{6,}\.png|labels\.csv|chains\.json|energies\.(csv|png)|film\.png|chains\.gif")
CSV_COLUMNS = ("step", "chain", "energy", "joint_energy", "saturation")
STRIP_FRAMES, STRIP_CHAINS = 12, 16
GIF_MILLISECONDS, GIF_COLUMNS = 120, 8
LAST_FRAME_MILLISECONDS = 1500


class ChainPictures(NamedTuple):
    """What chains look like on their way, and their energies."""

    film: bytes
    energies: bytes


@contextlib.contextmanager
def chains_folder(folder: Path, meta: dict[str, Any], overwrite: bool) -> Iterator[None]:
    """An empty folder for these chains, for this process alone; what a stopped call of the same request left is begun
    again. Raises ConfigError where something else is in it."""
    with claimed_folder(folder, "-o", OUR_NAMES, "chains.json") as earlier:
        if earlier is not None:
            unfinished = earlier.get("request") == meta["request"] and not earlier.get("complete")
            if not overwrite and not unfinished:
                raise ConfigError(f"-o {folder} holds chains already; add --overwrite, or give another folder")
            empty_own_folder(folder, OUR_NAMES)
        write_atomically(folder / "chains.json", json.dumps({**meta, "complete": False}, indent=1).encode())
        yield


def write_chains(folder: Path, chains: Chains, request: SampleRequest, meta: dict[str, Any]) -> dict[str, Any]:
    """Everything, chains.json last; returns its document."""
    rows = [request.row(chain) for chain in range(len(chains.final))]
    document = {**meta, "complete": True, "chains": describe_chains(chains, rows, request.plan)}
    write_atomically(folder / "energies.csv", csv_text([CSV_COLUMNS, *csv_rows(chains, request.plan)]))
    pictures = chain_pictures(chains, request, meta["init"])
    write_atomically(folder / "energies.png", pictures.energies)
    write_atomically(folder / "film.png", pictures.film)
    write_atomically(folder / "chains.gif", animation(chains.frames, chains.frame_steps))
    write_atomically(folder / "labels.csv", csv_text([LABEL_COLUMNS, *rows]))
    write_images(folder, [row[0] for row in rows], chains.final)
    write_atomically(folder / "chains.json", json.dumps(document, indent=1).encode())
    return document


def chain_pictures(chains: Chains, request: SampleRequest, init: str) -> ChainPictures:
    """Both as PNG bytes."""
    plan, count = request.plan, len(chains.final)
    title = f"{count} chains from {init}, steps of {plan.sgld_step_size:g}, noise {plan.noise_std:g}"
    described = describe_chains(chains, [request.row(chain) for chain in range(count)], plan)
    return ChainPictures(
        film=png_bytes(film_strip(chains.frames, chains.frame_steps, row_names(described))),
        energies=energy_plot(chains.joint_energy, title, "E(x, y)" if plan.conditional else "E(x)"),
    )


def row_names(chains: list[dict[str, Any]]) -> list[str]:
    """`3  -5.9`: class and energy at the end."""
    names = []
    for chain in chains[:STRIP_CHAINS]:
        last = chain.get("joint_energy", chain["energy"])[-1]
        names.append(f"{chain['class'][:10]}  {'-' if last is None else f'{last:.1f}'}")
    return names


def film_strip(frames: Tensor, steps: list[int], names: list[str]) -> Image.Image:
    """A row a chain behind its name, a column a moment below its step; frames uint8 (F, N, C, H, W). Columns are
    evenly spaced but for the last."""
    stride = -(-(len(frames) - 1) // (STRIP_FRAMES - 1)) or 1
    places = sorted({*range(0, len(frames), stride), len(frames) - 1})
    shown = frames[places][:, :STRIP_CHAINS].transpose(0, 1)
    sheet = contact_sheet(shown.flatten(0, 1), len(places))
    font, top = ImageFont.load_default(size=12), 18
    left = max(int(font.getlength(text)) for text in (*names, "step")) + 8
    page = Image.new("RGB", (left + sheet.width, top + sheet.height), PAPER)
    page.paste(sheet, (left, top))
    draw, width, height = ImageDraw.Draw(page), sheet.width / len(places), sheet.height / len(names)
    draw.text((2, 2), "step", fill=INK, font=font)
    for column, place in enumerate(places):
        draw.text((left + column * width + 2, 2), str(steps[place]), fill=INK, font=font)
    for row, name in enumerate(names):
        draw.text((2, top + (row + 0.5) * height - 7), name, fill=INK, font=font)
    return page


def animation(frames: Tensor, steps: list[int]) -> bytes:
    """A GIF of contact sheets under their step, that rests on its last frame; frames uint8 (F, N, C, H, W)."""
    columns = min(GIF_COLUMNS, frames.shape[1])
    pages = [side_by_side([(f"step {step}", contact_sheet(frame, columns))]) for frame, step in zip(frames, steps)]
    first, *others = [page.convert("P", palette=Image.Palette.ADAPTIVE) for page in pages]
    content = io.BytesIO()
    durations = [GIF_MILLISECONDS] * len(others) + [LAST_FRAME_MILLISECONDS]
    first.save(content, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)
    return content.getvalue()
