"""How far two sounds' spectra are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
"""(FFT size, hop, window) in samples: those of Parallel WaveGAN."""

# Of power: below 16-bit audio's own noise, and the logarithm's gradient stays finite in silence.
_FLOOR = 1e-7
# Root mean square: references that are quieter, -40 dB of full scale, would outweigh all others.
_QUIET = 0.01


def multi_resolution_spectral_distance(
    audio: Tensor,
    reference: Tensor,
    *,
    resolutions: Sequence[tuple[int, int, int]] = RESOLUTIONS,
    reduction: str = "mean",
) -> Tensor:
    """Spectral convergence plus log-magnitude error, averaged over several resolutions; a differentiable loss.

    At each resolution, of the magnitudes S of the audio and R of the reference: ‖R − S‖ / ‖R‖ in the Frobenius norm,
    and the mean of |log R − log S| (natural logarithm). 0 for equal magnitudes; the phases have no part. ‖R‖ counts as
    at least that of white noise at -40 dB of full scale, so that silence is a reference as others.

    Args:
        audio: (T,) or (B, T), float32 or float64, T at least 1.
        reference: of the audio's shape and dtype; what the convergence is relative to.
        resolutions: (FFT size, hop, window length) in samples; Hann windows, centred, zeros around the signal.
        reduction: "mean" over the batch, or "none".

    Returns:
        A scalar; with "none", (B,), or a scalar for (T,).

    Raises:
        ValueError: on shapes that differ, another number of dimensions, no samples, or an unknown reduction.

    Method: Yamamoto, Song and Kim, "Parallel WaveGAN: a fast waveform generation model based on generative adversarial
    networks with multi-resolution spectrogram", 2020; but each signal is normalised by its own reference, not the batch
    by the batch's.
    """
    if audio.shape != reference.shape or audio.dim() not in (1, 2) or not audio.shape[-1]:
        raise ValueError(
            f"audio and reference: expected both (T,) or (B, T) of one shape and not empty, "
            f"got {tuple(audio.shape)} and {tuple(reference.shape)}"
        )
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction={reduction!r}: expected 'mean' or 'none'")
    distances = [_distance(audio, reference, *resolution) for resolution in resolutions]
    distance = torch.stack(distances).mean(0)
    return distance.mean() if reduction == "mean" else distance


def _distance(audio: Tensor, reference: Tensor, fft_size: int, hop: int, window_length: int) -> Tensor:
    found, wanted = (magnitudes(signal, fft_size, hop, window_length) for signal in (audio, reference))
    convergence = torch.linalg.matrix_norm(wanted - found) / norm_of_reference(wanted, window_length)
    return convergence + (wanted.log() - found.log()).abs().mean((-2, -1))


def norm_of_reference(wanted: Tensor, window_length: int) -> Tensor:
    """(...,): the norm of magnitudes (..., bins, frames), or that of quiet noise where they have less."""
    # The mean square of a Hann window is 3/8.
    quiet = _QUIET * math.sqrt(math.prod(wanted.shape[-2:]) * 0.375 * window_length)
    return torch.linalg.matrix_norm(wanted).clamp(min=quiet)


def magnitudes(signal: Tensor, fft_size: int, hop: int, window_length: int) -> Tensor:
    """(..., fft_size // 2 + 1, frames): of the short-time spectra of a signal (..., T), never 0."""
    window = torch.hann_window(window_length, dtype=signal.dtype, device=signal.device)
    spectrum = torch.stft(signal, fft_size, hop, window_length, window, pad_mode="constant", return_complex=True)
    return (spectrum.real.square() + spectrum.imag.square()).clamp(min=_FLOOR).sqrt()
