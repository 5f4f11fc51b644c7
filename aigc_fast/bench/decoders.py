"""A vocoder and the decoder of latent images as a PyTorch user writes them: nothing here comes from aigc_fast."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

MELS = 80
FRAMES = 63
"""Of a second of sound at 16 kHz."""
LATENT_SHAPE = (4, 32, 32)
"""Of an image of 256×256."""


class _DilatedResidual(nn.Module):
    def __init__(self, channels: int, kernel: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(
            nn.Sequential(
                nn.LeakyReLU(0.1),
                nn.Conv1d(channels, channels, kernel, padding=dilation * (kernel - 1) // 2, dilation=dilation),
                nn.LeakyReLU(0.1),
                nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2),
            )
            for dilation in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        for body in self.bodies:
            x = x + body(x)
        return x


class StockHiFiGAN(nn.Module):
    """The generator of HiFi-GAN (Kong, Kim and Bae 2020), which makes 256 samples of each frame of a mel spectrogram.

    Args:
        channels: before the first of four upsamplings by 4, each of which halves them.
    """

    def __init__(self, channels: int = 512) -> None:
        super().__init__()
        self.first = nn.Conv1d(MELS, channels, 7, padding=3)
        widths = [channels >> stage for stage in range(5)]
        self.ups = nn.ModuleList(
            nn.Sequential(nn.LeakyReLU(0.1), nn.ConvTranspose1d(before, after, 8, 4, 2))
            for before, after in itertools.pairwise(widths)
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(_DilatedResidual(width, kernel, (1, 3, 5)) for kernel in (3, 7, 11)) for width in widths[1:]
        )
        self.last = nn.Sequential(nn.LeakyReLU(), nn.Conv1d(widths[-1], 1, 7, padding=3), nn.Tanh())

    def forward(self, mels: Tensor) -> Tensor:
        """Spectrograms (N, 80, T) to sounds (N, 1, 256 T)."""
        x = self.first(mels)
        for up, blocks in zip(self.ups, self.stages, strict=True):
            x = up(x)
            x = torch.stack([block(x) for block in blocks]).mean(0)
        return self.last(x)


class _NormedResidual(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(min(32, before), before),
            nn.SiLU(),
            nn.Conv2d(before, after, 3, padding=1),
            nn.GroupNorm(min(32, after), after),
            nn.SiLU(),
            nn.Conv2d(after, after, 3, padding=1),
        )
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.body(x)


class StockLatentDecoder(nn.Sequential):
    """The decoder of latent diffusion's autoencoder (Rombach et al. 2022) without its attention; 8 pixels a latent.

    Args:
        widths: channels at each of the four sizes, the smallest first.
    """

    def __init__(self, widths: tuple[int, ...] = (256, 256, 128, 64)) -> None:
        layers: list[nn.Module] = [nn.Conv2d(LATENT_SHAPE[0], widths[0], 3, padding=1)]
        before = widths[0]
        for stage, width in enumerate(widths):
            if stage > 0:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(before, before, 3, padding=1)]
            layers += [_NormedResidual(before, width), _NormedResidual(width, width)]
            before = width
        ending = nn.GroupNorm(min(32, before), before), nn.SiLU(), nn.Conv2d(before, 3, 3, padding=1)
        super().__init__(*layers, *ending)
