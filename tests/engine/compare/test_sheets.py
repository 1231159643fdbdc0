"""Which images of a set are looked at."""

from __future__ import annotations

import torch

from rjem_cli.engine.compare.image_grid import BLANK, COLUMNS, ROWS, sheet_of
from rjem_cli.engine.data.collection import ImageCollection


def images(count, labels=None):
    """Image i is of grey level i."""
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 1, 2, 2)
    return ImageCollection("made", pixels, labels)


def levels(sheet):
    return sheet.pixels[:, 0, 0, 0].view(-1, sheet.columns).tolist()


def test_a_column_holds_images_of_a_class():
    sheet = sheet_of(images(7, ("cat", "ant", "ant", "cat", "bee", "ant", "bee")))
    assert sheet.classes == ("ant", "bee", "cat") and sheet.of == 7
    assert levels(sheet) == [[1, 4, 0], [2, 6, 3], [5, BLANK, BLANK]]


def test_labels_that_are_numbers_have_the_names_of_the_classes_they_count():
    numbered = images(4, (1, 0, 1, 0))
    assert sheet_of(numbered, ("dog", "cat")).classes == ("cat", "dog")
    assert levels(sheet_of(numbered, ("dog", "cat"))) == [[0, 1], [2, 3]]
    assert sheet_of(numbered, ("dog",)).classes == sheet_of(numbered).classes == ("0", "1")


def test_of_many_classes_some_are_shown_and_of_many_images_some_rows():
    sheet = sheet_of(images(200, tuple(place % 20 for place in range(200))))
    assert len(sheet.classes) == sheet.columns == COLUMNS and len(sheet.pixels) == ROWS * COLUMNS


def test_images_without_classes_or_of_one_fill_the_sheet():
    for labels in (None, ("none",) * 200):
        sheet = sheet_of(images(200, labels))
        assert sheet.classes == () and sheet.columns == COLUMNS and len(sheet.pixels) == ROWS * COLUMNS
        assert levels(sheet)[0][0] == 0 and len(sheet.pixels.unique()) == ROWS * COLUMNS
    assert levels(sheet_of(images(3))) == [[0, 1, 2]]
