"""Data augmentation in batches on the device: reflect-pad and crop, mirror (as JEM++ trains)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def random_crop(pixels_BCHW: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Reflect-pad by `pad` pixels and crop each image to its old size at a random position of its own."""
    if pad == 0:
        return pixels_BCHW
    count, channels, height, width = pixels_BCHW.shape
    device = pixels_BCHW.device
    padded = F.pad(pixels_BCHW.float(), (pad,) * 4, mode="reflect").to(pixels_BCHW.dtype)
    corners = torch.randint(0, 2 * pad + 1, (2, count), generator=generator, device=device)
    rows = corners[0][:, None] + torch.arange(height, device=device)
    columns = corners[1][:, None] + torch.arange(width, device=device)
    images = torch.arange(count, device=device)[:, None, None, None]
    planes = torch.arange(channels, device=device)[:, None, None]
    return padded[images, planes, rows[:, None, :, None], columns[:, None, None, :]]


def random_flip(pixels_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image with probability one half."""
    flipped = torch.rand(len(pixels_BCHW), generator=generator, device=pixels_BCHW.device) < 0.5
    return torch.where(flipped[:, None, None, None], pixels_BCHW.flip(3), pixels_BCHW)


def augment(pixels_BCHW: Tensor, crop_pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    """uint8 (B, C, H, W) to uint8 of the same shape. `generator` must be on the images' device."""
    cropped = random_crop(pixels_BCHW, crop_pad, generator)
    return random_flip(cropped, generator) if flip else cropped
