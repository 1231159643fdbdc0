"""Data sets without a download: scikit-learn's 8x8 digits, and the same digits at random positions on a 12x12 canvas.

On 8x8 the class-Gaussian prior is nearly the data itself. On the canvas it is a blur, so what the model adds is seen.
"""

import torch

from rjem_cli.engine.data.images import SPLIT_SEED, TEST_FRACTION, ImageSet, Splits, split_off

CANVAS = 12  # pixels
PLACEMENTS = 16  # of each digit, drawn after the split, so that no digit is in two splits
CLASS_NAMES = tuple(str(digit) for digit in range(10))


def load_digits() -> ImageSet:
    """1,797 images, 1x8x8; scikit-learn's 17 grey levels stretched to 0..255."""
    from sklearn.datasets import load_digits as load

    digits = load()
    pixels = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8)
    return ImageSet(pixels[:, None], torch.from_numpy(digits.target).long(), CLASS_NAMES)


def load_digit_splits(val_fraction: float, *, shifted: bool) -> Splits:
    """`digits`, or with `shifted` the data set `shifted-digits`."""
    remaining, test = split_off(load_digits(), TEST_FRACTION)
    train, val = split_off(remaining, val_fraction)
    if not shifted:
        return Splits("digits", train, val, test)
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    return Splits("shifted-digits", *(place_on_canvas(part, generator) for part in (train, val, test)))


def place_on_canvas(digits: ImageSet, generator: torch.Generator) -> ImageSet:
    """Each digit PLACEMENTS times, at different random positions on a black 12x12 canvas."""
    count, channels, side, _ = digits.pixels.shape
    corners_per_side = CANVAS - side + 1
    corners = torch.rand(count, corners_per_side**2, generator=generator).argsort(dim=1)[:, :PLACEMENTS].flatten()
    source = torch.arange(count).repeat_interleave(PLACEMENTS)
    canvas = torch.zeros(len(source), channels, CANVAS, CANVAS, dtype=torch.uint8)
    rows = (corners // corners_per_side)[:, None] + torch.arange(side)
    columns = (corners % corners_per_side)[:, None] + torch.arange(side)
    canvas[torch.arange(len(source))[:, None, None], 0, rows[:, :, None], columns[:, None, :]] = digits.pixels[
        source, 0
    ]
    return ImageSet(canvas, digits.labels[source], digits.class_names)
