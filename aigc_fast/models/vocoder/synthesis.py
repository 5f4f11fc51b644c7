"""From frames back to sound: an excitation through a filter that changes as the sound goes on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aigc_fast.ops.recursion.reflection import coeffs_of_reflection

# Samples that a filter stays as it is, at most: 1 ms at 16 kHz, and a tenth of the work of a new one at every sample.
_HELD = 16


def to_samples(frames: Tensor, hop: int, length: int, every: int = 1) -> Tensor:
    """Linear interpolation between frames, differentiably.

    Args:
        frames: (..., F, C), one on every multiple of `hop`.
        hop: in samples.
        length: T, at most (F - 1) · hop.
        every: samples from one value to the next, a divisor of `hop`.

    Returns:
        (..., ceil(T / every), C).
    """
    ramp = torch.arange(0, hop, every, dtype=frames.dtype, device=frames.device)[:, None] / hop
    before, after = frames[..., :-1, None, :], frames[..., 1:, None, :]
    return torch.lerp(before, after, ramp).flatten(-3, -2)[..., : -(-length // every), :]


def coeffs_of_samples(reflection: Tensor, hop: int, length: int) -> Tensor:
    """The filter's coefficients (..., T, p) at every sample, of reflection coefficients (..., F, p) in frames.

    Between two stable filters the mean of reflection coefficients is stable, that of the coefficients need not be.
    """
    held = max(samples for samples in range(1, _HELD + 1) if hop % samples == 0)
    coeffs = coeffs_of_reflection(to_samples(reflection, hop, length, held))
    return coeffs.unsqueeze(-2).expand(*coeffs.shape[:-1], held, -1).flatten(-3, -2)[..., :length, :]


def pitch_of_samples(pitch: Tensor, hop: int, length: int) -> Tensor:
    """The pitch (..., T) at every sample, 0 where unvoiced, of frames (..., F); it doesn't glide to or from silence."""
    voiced = (pitch > 0).to(pitch.dtype)
    both = to_samples(torch.stack([pitch, voiced], -1), hop, length)
    weight = both[..., 1]
    return torch.where(weight > 0.5, both[..., 0] / weight.clamp(min=0.5), 0.0)


def pulse_train(pitch: Tensor, sample_rate: int) -> Tensor:
    """Band-limited pulses of unit power at a pitch that may change, the first at the first sample.

    All harmonics below the Nyquist frequency, equally strong and without a constant part. Differentiable in the pitch,
    but for the steps where the number of harmonics changes.

    Args:
        pitch: (..., T), in Hz; 0 for silence.
        sample_rate: in Hz.

    Returns:
        (..., T), of the pitch's dtype.

    Method: Stilson and Smith, "Alias-free digital synthesis of classic analog waveforms", 1996.
    """
    step = pitch.double() / sample_rate
    cycles = step.cumsum(-1) - step
    phase = math.pi * (cycles - cycles.detach().round())
    harmonics = torch.where(pitch > 0, (0.5 / step.detach().clamp(min=1e-9)).ceil() - 1, 0.0)
    sine = torch.sin(phase)
    at_pulse = sine.abs() < 1e-9
    kernel = torch.sin((2 * harmonics + 1) * phase) / torch.where(at_pulse, 1.0, sine)
    pulses = torch.where(at_pulse, 2 * harmonics + 1, kernel) - 1
    return (pulses / (2 * harmonics).clamp(min=1).sqrt()).to(pitch.dtype)


def excitation_of(pitch: Tensor, voicing: Tensor, sample_rate: int, noise: Tensor) -> Tensor:
    """Unit power (..., T): pulses at the pitch mixed with noise; noise alone where the pitch is 0.

    Args:
        pitch: (..., T), in Hz.
        voicing: (..., T), 0 to 1: the pulses' share of the power.
        sample_rate: in Hz.
        noise: white, of unit power, of a shape that broadcasts to (..., T).
    """
    share = torch.where(pitch > 0, voicing, 0.0)
    return _root(share) * pulse_train(pitch, sample_rate) + _root(1 - share) * noise


def _root(share: Tensor) -> Tensor:
    """The square root, with a gradient at 0 that is not infinite."""
    return share.clamp(min=1e-12).sqrt()


def inverse_filter(audio: Tensor, coeffs: Tensor) -> Tensor:
    """What is left of audio (..., T) when its prediction is taken away: e[t] = x[t] - sum over i of a[t][i-1] x[t-i].

    `functional.ar_recursion(e, coeffs)` undoes it.

    Args:
        audio: (..., T).
        coeffs: a, (..., T, p).
    """
    order = coeffs.shape[-1]
    past = torch.nn.functional.pad(audio, (order, 0))[..., :-1].unfold(-1, order, 1).flip(-1)
    return audio - (coeffs * past).sum(-1)
