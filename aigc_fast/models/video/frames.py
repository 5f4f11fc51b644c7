"""From frames to features, and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from aigc_fast import nn as fast

_SLOPE = 0.2
_CELL = 4
"""Pixels of a frame to the side of a coarse feature."""
# Of the frames' side: how far pixels may move in a step.
_REACH = 0.1
_CONTRAST = 3.0


class Features(NamedTuple):
    """Of frames one after the other.

    Attributes:
        frames: themselves, (T, N, channels, height, width).
        fine: (T, N, C, height / 2, width / 2).
        coarse: (T, N, C, height / 4, width / 4).
    """

    frames: Tensor
    fine: Tensor
    coarse: Tensor

    def part(self, begin: int, end: int) -> Features:
        """Those from one place to before another."""
        return Features(*(each[begin:end] for each in self))

    def followed_by(self, others: Features) -> Features:
        """These, then others."""
        return Features(*(torch.cat(pair) for pair in zip(self, others, strict=True)))


class Encoder(nn.Module):
    """Two convolutions of half the sides each.

    Args:
        inputs: channels of what it reads.
        fine: channels of the larger features.
        coarse: channels of the smaller ones.
    """

    def __init__(self, inputs: int, fine: int, coarse: int) -> None:
        super().__init__()
        self.widths = fine, coarse
        self.first = nn.Sequential(fast.Conv2d(inputs, fine, 4, 2, 1), nn.LeakyReLU(_SLOPE))
        self.second = nn.Sequential(fast.Conv2d(fine, coarse, 4, 2, 1), nn.LeakyReLU(_SLOPE))

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """(N, inputs, H, W) to the fine and the coarse features, (N, fine, H/2, W/2) and (N, coarse, H/4, W/4)."""
        fine = self.first(frames)
        return fine, self.second(fine)


class Decoder(nn.Module):
    """Draws a frame upon what the pixels of the frame before become when they move.

    Two transposed convolutions of twice the sides each, of which the second sees fine features, too, and a convolution
    draw. Each cell of the coarse maps says whence its pixels come, up to a tenth of the side away, by softmaxes over
    rows and over columns.

    Args:
        coarse: channels of the coarse maps.
        hidden: channels between.
        fine: channels of the larger features, and of the last maps.
        channels: of frames.
        side: of frames, the longer one.

    Method: of the moving pixels: Niklaus, Mai and Liu, "Video Frame Interpolation via Adaptive Separable Convolution",
    2017; De Brabandere, Jia, Tuytelaars and Van Gool, "Dynamic Filter Networks", 2016.
    """

    def __init__(self, coarse: int, hidden: int, fine: int, channels: int, side: int) -> None:
        super().__init__()
        self.first = nn.Sequential(fast.ConvTranspose2d(coarse, hidden, 4, 2, 1), nn.LeakyReLU(_SLOPE))
        self.second = nn.Sequential(
            fast.ConvTranspose2d(hidden + fine, fine, 4, 2, 1),
            nn.LeakyReLU(_SLOPE),
            fast.Conv2d(fine, channels, 3, 1, 1),
        )
        self.reach = max(1, round(_REACH * side))
        self.whence = fast.Conv2d(coarse, 2 * (2 * self.reach + 1), 1)
        self.contrast = nn.Parameter(torch.tensor(_CONTRAST))
        with torch.no_grad():
            # Nothing moves at first.
            self.whence.bias.zero_().view(2, -1)[:, self.reach] = 2.0

    def forward(self, coarse: Tensor, fine: Tensor, frames: Tensor) -> Tensor:
        """(N, coarse, H/4, W/4), (N, fine, H/2, W/2) and the frames before to those that come, (N, channels, H, W),
        before any squashing."""
        drawn = self.second(torch.cat([self.first(coarse), fine], dim=1))
        return drawn + self.contrast * self._moved(frames, *self.whence(coarse).chunk(2, dim=1))

    def _moved(self, frames: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        for dim, logits in ((2, rows), (3, columns)):
            side, sides = frames.shape[dim], [0, 0, 0, 0]
            sides[6 - 2 * dim] = sides[7 - 2 * dim] = self.reach
            padded = nn.functional.pad(frames, sides, mode="replicate")
            shifted = torch.stack([padded.narrow(dim, tap, side) for tap in range(2 * self.reach + 1)], dim=2)
            share = logits.softmax(1).repeat_interleave(_CELL, 2).repeat_interleave(_CELL, 3)
            frames = (shifted * share[:, None]).sum(2)
        return frames
