"""From frames to features, and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from aigc_fast import nn as fast

_SLOPE = 0.2


class Features(NamedTuple):
    """Of frames one after the other.

    Attributes:
        fine: (T, N, C, height / 2, width / 2).
        coarse: (T, N, C, height / 4, width / 4).
    """

    fine: Tensor
    coarse: Tensor

    def part(self, begin: int, end: int) -> Features:
        """Those from one place to before another."""
        return Features(self.fine[begin:end], self.coarse[begin:end])

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
    """Two transposed convolutions of twice the sides each, of which the second sees fine features, too.

    Args:
        coarse: channels of the smaller maps.
        hidden: channels between.
        fine: channels of the larger features, and of the last maps.
        channels: of frames.
    """

    def __init__(self, coarse: int, hidden: int, fine: int, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(fast.ConvTranspose2d(coarse, hidden, 4, 2, 1), nn.LeakyReLU(_SLOPE))
        self.second = nn.Sequential(
            fast.ConvTranspose2d(hidden + fine, fine, 4, 2, 1),
            nn.LeakyReLU(_SLOPE),
            fast.Conv2d(fine, channels, 3, 1, 1),
        )

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """(N, coarse, H/4, W/4) and (N, fine, H/2, W/2) to frames (N, channels, H, W) before any squashing."""
        return self.second(torch.cat([self.first(coarse), fine], dim=1))
