"""A few images of a set, laid out to be looked at beside others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rjem_cli.engine.data.collection import ImageCollection
from rjem_cli.engine.data.images import spread_indices

ROWS, COLUMNS = 8, 10
BLANK = 255


@dataclass(frozen=True)
class Sheet:
    """uint8 (N, C, H, W) in rows of `columns`, out of `of` images; a column a class, where `classes` names them."""

    name: str
    pixels: Tensor
    columns: int
    of: int
    classes: tuple[str, ...] = ()


def sheet_of(images: ImageCollection) -> Sheet:
    """The first images of each class, a column each, or of some classes where there are many. Sets without classes, or
    of one, are spread over the sheet."""
    places: dict[str | int, list[int]] = {}
    labels: tuple[str | int, ...] = images.labels or ()
    for place, label in enumerate(labels):
        places.setdefault(label, []).append(place)
    if len(places) < 2:
        count = min(ROWS * COLUMNS, len(images))
        return Sheet(images.name, images.pixels[spread_indices(len(images), count)], min(COLUMNS, count), len(images))
    present = sorted(places)  # type: ignore[type-var]  # all text or all numbers
    shown = [present[place] for place in spread_indices(len(present), min(COLUMNS, len(present))).tolist()]
    rows = min(ROWS, max(len(places[label]) for label in shown))
    blank = torch.full_like(images.pixels[0], BLANK)
    pixels = [
        images.pixels[places[label][row]] if row < len(places[label]) else blank
        for row in range(rows)
        for label in shown
    ]
    return Sheet(images.name, torch.stack(pixels), len(shown), len(images), tuple(map(str, shown)))
