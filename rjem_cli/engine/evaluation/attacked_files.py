"""Attacked images as files, and what is left of the attack in them: 8 bits round every pixel, so radius and success are
measured again from what was written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rjem_cli.engine.chains.losses import is_hit
from rjem_cli.engine.chains.pgd import Logits, l2_norm
from rjem_cli.engine.data.csv_rows import append_rows
from rjem_cli.engine.data.images import to_model, to_pixels
from rjem_cli.engine.data.pictures import contact_sheet, pixels_of, png_bytes, side_by_side, write_images
from rjem_cli.engine.evaluation.accuracy import Accuracy
from rjem_cli.engine.evaluation.attack import AttackSet, CleanState, EpsResult
from rjem_cli.engine.room import Room
from rjem_cli.files import make_dir, write_atomically

EXAMPLES, EXAMPLE_COLUMNS = 25, 5
COLUMNS = ("file", "index", "label", "class", "target", "predicted_clean", "predicted", "hit", "distance")


@dataclass(frozen=True)
class MeasuredFiles:
    """`success`: of the attacked images; `largest`: distance to the original in model units, over those; `over`: how
    many lie farther than eps, which rounding can cause where eps is no whole number of grey levels."""

    folder: Path
    success: Accuracy
    robust: Accuracy
    largest: float
    over: int

    def to_dict(self, targeted: bool) -> dict[str, Any]:
        shares = {"success": self.success.to_dict()}
        if not targeted:
            shares["robust_accuracy"] = self.robust.to_dict()
        return {"folder": str(self.folder), **shares, "largest_distance": self.largest, "over_eps": self.over}


def write_and_measure(
    folder: Path,
    result: EpsResult,
    clean: CleanState,
    chosen: AttackSet,
    logits_of: Logits,
    norm: str,
    *,
    device: torch.device,
    room: Room,
) -> MeasuredFiles:
    """Write all images, attacked or not, as <index>.png with images.csv beside; read them back and measure."""
    make_dir(folder)
    names = [f"{index:06d}.png" for index in chosen.indices.tolist()]
    append_rows(folder / "images.csv", [COLUMNS])
    hits, rights, distances = [], [], []

    def logits_on_host(x: Tensor) -> tuple[Tensor]:
        return (logits_of(x.to(device)).cpu(),)

    for rows in torch.arange(len(chosen)).split(room.asked):
        write_images(folder, [names[row] for row in rows], to_pixels(result.x[rows]))
        x = to_model(torch.stack([read_pixels(folder / names[row]) for row in rows]))
        with torch.no_grad():
            (logits_BK,) = room(logits_on_host, x)
        hit = is_hit(logits_BK, chosen.aims[rows], chosen.targets is not None) & clean.attacked[rows]
        distance = distance_of(x - to_model(chosen.images.pixels[rows]), norm)
        predicted = logits_BK.argmax(dim=1)
        append_rows(folder / "images.csv", rows_of(chosen, clean, rows, names, predicted, hit, distance))
        hits.append(hit)
        rights.append(predicted == chosen.images.labels[rows])
        distances.append(distance)
    write_examples(folder / "examples.png", result, chosen)
    far = torch.cat(distances)[clean.attacked]
    attacked = int(clean.attacked.sum())
    return MeasuredFiles(
        folder=folder,
        success=Accuracy(int(torch.cat(hits).sum()), attacked),
        robust=Accuracy(int(torch.cat(rights).sum()), len(chosen)),
        largest=float(far.max()) if len(far) else 0.0,
        over=int((far > result.eps + 1e-6).sum()),
    )


def write_examples(path: Path, result: EpsResult, chosen: AttackSet) -> None:
    """The first images that were hit: as they were, attacked, and the difference in grey, scaled to the radius."""
    rows = result.hit.nonzero().squeeze(1)[:EXAMPLES]
    if not len(rows):
        return
    attacked, before = result.x[rows], to_model(chosen.images.pixels[rows])
    difference = (attacked - before) / (attacked - before).abs().amax().clamp_min(1e-12)
    parts = {"image": before, "attacked": attacked, "difference": difference}
    sheets = [(title, contact_sheet(to_pixels(part), EXAMPLE_COLUMNS)) for title, part in parts.items()]
    write_atomically(path, png_bytes(side_by_side(sheets)))


def distance_of(offset: Tensor, norm: str) -> Tensor:
    """(B,), model units."""
    return offset.flatten(1).abs().amax(dim=1) if norm == "linf" else l2_norm(offset).flatten()


def read_pixels(path: Path) -> Tensor:
    with Image.open(path) as image:
        return pixels_of(image)


def rows_of(
    chosen: AttackSet,
    clean: CleanState,
    rows: Tensor,
    names: list[str],
    predicted: Tensor,
    hit: Tensor,
    distance: Tensor,
) -> list[tuple[object, ...]]:
    labels, targets = chosen.images.labels, chosen.targets
    return [
        (
            names[row],
            int(chosen.indices[row]),
            int(labels[row]),
            chosen.images.class_names[int(labels[row])],
            "" if targets is None else int(targets[row]),
            int(clean.predictions[row]),
            int(predicted[place]),
            int(hit[place]),
            f"{float(distance[place]):.6f}",
        )
        for place, row in enumerate(rows.tolist())
    ]
