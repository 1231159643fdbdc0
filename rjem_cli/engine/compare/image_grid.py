"""A few images of a set, laid out to be looked at beside others."""

from __future__ import annotations

from collections.abc import Sequence
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


def sheet_of(images: ImageCollection, class_names: Sequence[str] = ()) -> Sheet:
    """Images that are spread evenly over the set: a column a class, or some classes where there are many; without
    classes, or with one, all over the sheet. `class_names` are those of labels that are numbers."""
    places: dict[str | int, list[int]] = {}
    numbers = images.class_numbers(class_names)
    labels = (images.labels or ()) if numbers is None else tuple(class_names[number] for number in numbers.tolist())
    for place, label in enumerate(labels):
        places.setdefault(label, []).append(place)
    if len(places) < 2:
        count = min(ROWS * COLUMNS, len(images))
        spread = images.pixels[spread_indices(len(images), count)]
        return Sheet(images.name, spread, min(COLUMNS, count), len(images))
    present = sorted(places)  # type: ignore[type-var]  # all text or all numbers
    classes = [present[place] for place in spread_indices(len(present), min(COLUMNS, len(present))).tolist()]
    columns = [column_of(images.pixels[places[label]]) for label in classes]
    height = max(map(len, columns))
    blank = torch.full_like(images.pixels[:1], BLANK)
    padded = [torch.cat([column, blank.expand(height - len(column), -1, -1, -1)]) for column in columns]
    return Sheet(
        images.name, torch.stack(padded, dim=1).flatten(0, 1), len(classes), len(images), tuple(map(str, classes))
    )


def column_of(pixels: Tensor) -> Tensor:
    return pixels[spread_indices(len(pixels), min(ROWS, len(pixels)))]
