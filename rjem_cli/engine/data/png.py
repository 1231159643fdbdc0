"""PNG files and contact sheets."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rjem_cli.files import explained

GAP = 1  # pixels between images, before enlarging
PAPER = (255, 255, 255)
INK = (40, 40, 40)


def to_image(pixels_CHW: Tensor) -> Image.Image:
    """uint8 (C, H, W), C 1 or 3, to a Pillow image."""
    array = pixels_CHW.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def from_image(image: Image.Image) -> Tensor:
    """A Pillow image to uint8 (C, H, W)."""
    array = torch.from_numpy(np.array(image))
    return array[None] if array.dim() == 2 else array.permute(2, 0, 1)


def png_bytes(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()


def contact_sheet(pixels: Tensor, columns: int) -> Image.Image:
    """uint8 (N, C, H, W) in rows of `columns` with a white gap; small images are enlarged without smoothing.

    torchvision's make_grid would add an outer border, and importing it takes longer than drawing the sheet.
    """
    count, _, height, width = pixels.shape
    rows = -(-count // columns)
    sheet = torch.full((3, rows * (height + GAP) - GAP, columns * (width + GAP) - GAP), 255, dtype=torch.uint8)
    for index, image in enumerate(pixels.cpu().expand(count, 3, height, width)):
        top, left = index // columns * (height + GAP), index % columns * (width + GAP)
        sheet[:, top : top + height, left : left + width] = image
    scale = max(1, min(6, round(48 / max(height, width))))
    picture = to_image(sheet)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def side_by_side(sheets: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Sheets next to each other, each under its title."""
    font, margin, title_height = ImageFont.load_default(size=16), 16, 28
    widths = [max(sheet.width, int(font.getlength(title))) for title, sheet in sheets]
    height = max(sheet.height for _, sheet in sheets) + title_height + 2 * margin
    page = Image.new("RGB", (sum(widths) + margin * (len(sheets) + 1), height), PAPER)
    draw, left = ImageDraw.Draw(page), margin
    for (title, sheet), width in zip(sheets, widths):
        draw.text((left, margin), title, fill=INK, font=font)
        page.paste(sheet, (left, margin + title_height))
        left += width + margin
    return page


def write_images(folder: Path, names: Sequence[str], pixels: Tensor) -> None:
    """Write uint8 (N, C, H, W) as PNG files, each completely or not at all, without an fsync. Raises RjemError."""
    for name, image in zip(names, pixels):
        path = folder / name
        with explained("write", path):
            try:
                path.write_bytes(png_bytes(to_image(image)))
            except OSError:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
                raise
