"""Many images in one."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def image_grid(images: Tensor, columns: int | None = None, padding: int = 2, background: float = 1.0) -> Tensor:
    """Arranges images row by row in one image.

    Args:
        images: (N, C, H, W).
        columns: images per row; by default the fewest that make the grid no taller than wide.
        padding: pixels around and between the images.
        background: value of the padding and of empty cells.

    Returns:
        (C, rows·(H + padding) + padding, columns·(W + padding) + padding), of the images' dtype.

    Raises:
        ValueError: when `images` is not 4-d or empty, or `columns` or `padding` is out of range.
    """
    if images.dim() != 4 or images.numel() == 0:
        raise ValueError(f"images: expected a non-empty (N, C, H, W) tensor, got shape {tuple(images.shape)}")
    if columns is not None and columns < 1:
        raise ValueError(f"columns={columns}: expected at least 1")
    if padding < 0:
        raise ValueError(f"padding={padding}: expected at least 0")
    count, channels, height, width = images.shape
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    rows = math.ceil(count / columns)
    grid = images.new_full(
        (channels, rows * (height + padding) + padding, columns * (width + padding) + padding), background
    )
    for index, image in enumerate(images.detach()):
        row, column = divmod(index, columns)
        top, left = padding + row * (height + padding), padding + column * (width + padding)
        grid[:, top : top + height, left : left + width] = image
    return grid


def to_uint8(image: Tensor) -> np.ndarray:
    """Converts an image in [-1, 1] to bytes; values outside are clipped, NaN becomes black.

    Args:
        image: (C, H, W) with C = 1 or 3.

    Returns:
        uint8 array (H, W) for one channel, (H, W, 3) for three.

    Raises:
        ValueError: for another shape.
    """
    if image.dim() != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"image: expected shape (1, H, W) or (3, H, W), got {tuple(image.shape)}")
    scaled = torch.nan_to_num((image.detach().float().cpu() + 1) * 127.5, nan=0.0).clamp(0, 255)
    pixels = scaled.round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return pixels[:, :, 0] if image.shape[0] == 1 else pixels
