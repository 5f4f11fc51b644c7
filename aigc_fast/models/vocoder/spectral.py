"""How far two sounds' spectra are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from aigc_fast.checks import check_finite, check_floating

RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
"""(FFT size, hop, window) in samples: those of Parallel WaveGAN."""

# Of power: below 16-bit audio's own noise, and the logarithm's gradient stays finite in silence.
_FLOOR = 1e-7
# Root mean square: references that are quieter, -40 dB of full scale, would outweigh all others.
_QUIET = 0.01
# Of a sample, as a part of what can be squared: the norm of all spectra is some such times as large.
_MOST_SQUARED = 1e-7


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
        audio: (T,) or (B, T), float32 or float64, finite, T at least 1.
        reference: of the audio's shape, dtype and device, finite; what the convergence is relative to.
        resolutions: (FFT size, hop, window length) in samples; Hann windows, centred, zeros around the signal.
        reduction: "mean" over the batch, or "none".

    Returns:
        A scalar; with "none", (B,), or a scalar for (T,).

    Raises:
        TypeError: if an argument is not a Tensor.
        ValueError: for shapes, dtypes or devices that differ, another number of dimensions, no samples, values that are
            not finite or whose spectra are not, resolutions that make no spectra, or an unknown reduction.

    Method: Yamamoto, Song and Kim, "Parallel WaveGAN: a fast waveform generation model based on generative adversarial
    networks with multi-resolution spectrogram", 2020; but each signal is normalised by its own reference, not the batch
    by the batch's.
    """
    check_sounds(audio=audio, reference=reference)
    check_resolutions(resolutions)
    if audio.shape != reference.shape or audio.dim() not in (1, 2) or not audio.shape[-1]:
        raise ValueError(
            f"audio and reference: expected both (T,) or (B, T) of one shape and not empty, "
            f"got {tuple(audio.shape)} and {tuple(reference.shape)}"
        )
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction={reduction!r}: expected 'mean' or 'none'")
    distance = spectral_distance(audio, reference, resolutions)
    return distance.mean() if reduction == "mean" else distance


def check_sounds(**sounds: Tensor) -> None:
    """Refuses, by name, what is not of float32 or float64, of one dtype and device, and finite, spectra too."""
    check_floating(**sounds)
    first = next(iter(sounds))
    for name, tensor in sounds.items():
        if tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name}: expected float32 or float64, got {tensor.dtype}")
        for quality in ("dtype", "device"):
            found, expected = getattr(tensor, quality), getattr(sounds[first], quality)
            if found != expected:
                raise ValueError(f"{name}: expected {first}'s {quality} {expected}, got {found}")
    check_finite(_MOST_SQUARED * math.sqrt(torch.finfo(sounds[first].dtype).max), **sounds)


def check_resolutions(resolutions: Sequence[tuple[int, int, int]]) -> None:
    """Refuses what are not triples of an FFT size, a hop and a window length that give spectra."""
    fit = [len(sizes) == 3 and 1 <= sizes[2] <= sizes[0] and sizes[1] >= 1 for sizes in resolutions]
    if not fit or not all(fit):
        raise ValueError(
            f"resolutions={resolutions}: expected (FFT size, hop, window length), each at least 1, no window longer "
            "than its FFT"
        )


def spectral_distance(
    audio: Tensor, reference: Tensor, resolutions: Sequence[tuple[int, int, int]] = RESOLUTIONS
) -> Tensor:
    """`multi_resolution_spectral_distance` of each signal; NaN where a signal has NaN, as a training loop expects."""
    return torch.stack([_distance(audio, reference, *resolution) for resolution in resolutions]).mean(0)


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
