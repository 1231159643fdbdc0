"""Which images of a set a grid shows."""

from __future__ import annotations

import torch

from rjem_cli.engine.compare.samples import BLANK, GRID_COLUMNS, GRID_ROWS, image_grid
from rjem_cli.engine.data.collection import ImageCollection


def images(count, labels=None):
    """Image i is of grey level i."""
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 1, 2, 2)
    return ImageCollection("made", pixels, labels)


def levels(grid):
    return grid.pixels[:, 0, 0, 0].view(-1, grid.columns).tolist()


def test_a_column_holds_images_of_one_class():
    grid = image_grid(images(7, ("cat", "ant", "ant", "cat", "bee", "ant", "bee")))
    assert grid.classes == ("ant", "bee", "cat") and grid.total == 7
    assert levels(grid) == [[1, 4, 0], [2, 6, 3], [5, BLANK, BLANK]]


def test_numeric_labels_get_the_names_of_their_classes():
    numbered = images(4, (1, 0, 1, 0))
    assert image_grid(numbered, ("dog", "cat")).classes == ("cat", "dog")
    assert levels(image_grid(numbered, ("dog", "cat"))) == [[0, 1], [2, 3]]
    assert image_grid(numbered, ("dog",)).classes == image_grid(numbered).classes == ("0", "1")


def test_a_grid_is_limited_to_its_rows_and_columns():
    grid = image_grid(images(200, tuple(index % 20 for index in range(200))))
    assert len(grid.classes) == grid.columns == GRID_COLUMNS and len(grid.pixels) == GRID_ROWS * GRID_COLUMNS


def test_images_of_no_or_one_class_fill_the_grid():
    for labels in (None, ("none",) * 200):
        grid = image_grid(images(200, labels))
        assert grid.classes == () and grid.columns == GRID_COLUMNS and len(grid.pixels) == GRID_ROWS * GRID_COLUMNS
        assert levels(grid)[0][0] == 0 and len(grid.pixels.unique()) == GRID_ROWS * GRID_COLUMNS
    assert levels(image_grid(images(3))) == [[0, 1, 2]]
