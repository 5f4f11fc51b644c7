"""Sounds as pictures."""

from __future__ import annotations

import torch
from torch import Tensor

_WINDOW_SECONDS = 0.032
# Of power: a silent sound has a logarithm, too.
_FLOOR = 1e-12


def spectrogram_image(
    audio: Tensor, sample_rate: int, *, width: int = 512, height: int = 256, decibels: float = 80.0
) -> Tensor:
    """Draws the spectrogram of a sound as an image for `write_png`.

    Time runs to the right over the whole sound, frequency upwards from 0 to half the sample rate. The loudest point is
    white, points that are `decibels` or more below it are black, and levels between are linear in decibels.

    Args:
        audio: (T,), floating-point, T at least 1.
        sample_rate: in Hz; the Hann window is 32 ms long.
        width: in pixels.
        height: in pixels.
        decibels: the range from black to white.

    Returns:
        (1, height, width), float32 in [-1, 1]. Silence is black.

    Raises:
        ValueError: for audio of another shape or type, or a number that is not positive.
    """
    if audio.dim() != 1 or not audio.is_floating_point() or not audio.numel():
        raise ValueError(f"audio: expected (T,), floating-point and not empty, got {tuple(audio.shape)}, {audio.dtype}")
    for name, value in (("sample_rate", sample_rate), ("width", width), ("height", height), ("decibels", decibels)):
        if value <= 0:
            raise ValueError(f"{name}={value}: expected a positive number")
    levels = 10 * _power(audio.detach().float(), sample_rate, width).clamp(min=_FLOOR).log10()
    loudest = levels.max().clamp(min=10 * torch.tensor(_FLOOR).log10().item() + decibels)
    grey = ((levels - loudest) / decibels * 2 + 1).clamp(min=-1.0)
    scaled = torch.nn.functional.interpolate(
        grey.flip(0)[None, None], (height, width), mode="bilinear", align_corners=False, antialias=True
    )
    return scaled[0].clamp(-1.0, 1.0)


def _power(audio: Tensor, sample_rate: int, columns: int) -> Tensor:
    """(frequencies, times): power of short-time spectra, at least one for each column of the image."""
    size = max(2, round(_WINDOW_SECONDS * sample_rate))
    hop = max(1, min(size // 4, len(audio) // columns))
    window = torch.hann_window(size, device=audio.device)
    spectrum = torch.stft(audio, size, hop, window=window, pad_mode="constant", return_complex=True)
    return spectrum.real.square() + spectrum.imag.square()
