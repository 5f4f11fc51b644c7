"""What a sound is made of, frame by frame: a linear predictor, its gain and the pitch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aigc_fast.ops.recursion.reflection import step_up

# The first dip below it is the period; a frame without one is unvoiced.
_DIP = 0.15
# Mean power of 16-bit audio's last bit: below it there is nothing to predict and no pitch.
_SILENCE = 2.0**-30
# Relative white noise under every frame, -70 dB: it keeps the filter away from the edge of stability.
_NOISE_FLOOR = 1e-7
# Hz: resonances narrower than the harmonics are apart would follow single harmonics and ring at them.
_BROADENING = 60.0


def pre_emphasis(audio: Tensor, coefficient: float) -> Tensor:
    """y[t] = x[t] - coefficient · x[t - 1], of audio (..., T): flattens the spectrum that the glottis tilts."""
    return audio - coefficient * torch.nn.functional.pad(audio, (1, 0))[..., :-1]


def frame_count(length: int, hop: int) -> int:
    """How many frames cover `length` samples, one centred on every multiple of `hop`, the last at or after the end."""
    return -(-length // hop) + 1


def frames_of(audio: Tensor, size: int, hop: int) -> Tensor:
    """Frames (..., F, size) of audio (..., T), centred on the multiples of `hop`; zeros around the audio."""
    length = audio.shape[-1]
    end = (frame_count(length, hop) - 1) * hop + size - size // 2
    return torch.nn.functional.pad(audio, (size // 2, end - length)).unfold(-1, size, hop)


def frames_within(audio: Tensor, size: int, hop: int) -> Tensor:
    """As `frames_of`, but frames that would reach beyond the audio are moved inside, where it is long enough."""
    length = audio.shape[-1]
    starts = torch.arange(frame_count(length, hop), device=audio.device) * hop - size // 2
    inside = torch.nn.functional.pad(audio, (0, max(0, size - length)))
    return inside.unfold(-1, size, 1)[..., starts.clamp(0, max(0, length - size)), :]


def autocorrelation(frames: Tensor, lags: int) -> Tensor:
    """(..., lags + 1): sum over t of x[t] x[t + lag], lags from 0, of frames (..., size)."""
    length = _fast_length(frames.shape[-1] + lags)
    spectrum = torch.fft.rfft(frames, length)
    power = spectrum.real.square() + spectrum.imag.square()
    return torch.fft.irfft(power, length)[..., : lags + 1]


def _fast_length(least: int) -> int:
    """The smallest length from `least` on without a prime factor above 5: a transform of such a one takes a third."""
    return next(length for length in range(least, 2 * least + 1) if 60 ** length.bit_length() % length == 0)


def levinson(correlation: Tensor) -> tuple[Tensor, Tensor]:
    """The linear predictor that an autocorrelation asks for, by the Levinson-Durbin recursion. Differentiable.

    Args:
        correlation: (..., p + 1), lags from 0; that of lag 0 is positive.

    Returns:
        (reflection, error): the reflection coefficients (..., p), of which `coeffs_of_reflection` makes those of
        y[t] = sum over i of coeffs[i - 1] y[t - i], and the predictor's remaining power (...,), in the correlation's
        units.

    Equivalent to `scipy.linalg.solve_toeplitz(correlation[:-1], correlation[1:])` with the coefficients. Method:
    Durbin, "The fitting of time-series models", 1960.
    """
    error = correlation[..., :1]
    coeffs = reflection = correlation[..., :0]
    for order in range(1, correlation.shape[-1]):
        predicted = (coeffs * correlation[..., 1:order].flip(-1)).sum(-1, keepdim=True)
        k = (correlation[..., order : order + 1] - predicted) / error
        coeffs = step_up(coeffs, k)
        reflection = torch.cat([reflection, k], -1)
        error = error * (1 - k * k)
    return reflection, error.squeeze(-1)


def linear_prediction(frames: Tensor, window: Tensor, order: int, sample_rate: int) -> Tensor:
    """Reflection coefficients (..., order) of frames (..., size) under a window (size,). Differentiable.

    The autocorrelation method: Makhoul, "Linear prediction: a tutorial review", 1975; the lag window: Tohkura, Itakura
    and Hashimoto, "Spectral smoothing technique in PARCOR speech analysis-synthesis", 1978.
    """
    # A vowel's spectrum falls by more than float32's precision tells from nothing.
    correlation = autocorrelation((frames * window).double(), order)
    lags = torch.arange(order + 1, dtype=torch.float64, device=frames.device)
    lag_window = torch.exp(-0.5 * (2 * math.pi * _BROADENING / sample_rate * lags).square())
    floor = torch.zeros_like(correlation)
    floor[..., 0] = _NOISE_FLOOR * correlation[..., 0].detach() + _SILENCE * window.square().sum()
    reflection, _ = levinson(correlation * lag_window + floor)
    return reflection.to(frames.dtype)


def root_mean_square(frames: Tensor, window: Tensor) -> Tensor:
    """(...,): of frames (..., size) under a window (size,), differentiable in silence too."""
    weights = window.square() / window.square().sum()
    return ((frames.square() * weights).sum(-1) + _SILENCE).sqrt()


def yin(frames: Tensor, sample_rate: int, min_pitch: float, max_pitch: float) -> tuple[Tensor, Tensor]:
    """Pitch and voicing of frames, by the first deep dip of the normalised difference function.

    Args:
        frames: (..., yin_frame_size(sample_rate, min_pitch)), floating-point.
        sample_rate: in Hz.
        min_pitch: in Hz.
        max_pitch: in Hz.

    Returns:
        (pitch, voicing): both (...,), of the frames' dtype. The pitch is in Hz, 0 where the frame is unvoiced; the
        voicing, 0 to 1, is 1 less the share of the power, about below 1 kHz, that does not repeat after one period.

    Method: de Cheveigné and Kawahara, "YIN, a fundamental frequency estimator for speech and music", 2002.
    """
    longest, shortest = _longest_period(sample_rate, min_pitch), max(2, int(sample_rate / max_pitch))
    # In float32 the difference of nearly equal powers would hide the dip.
    smooth = _moving_average(frames.detach().double(), _smoothing(sample_rate))
    difference = normalised_difference(smooth, longest + 1)
    dip, voiced = _first_dip(difference[..., shortest - 1 : longest + 2])
    period, depth = _parabolic_minimum(difference, dip + shortest)
    pitch = torch.where(voiced, sample_rate / period, 0.0)
    return pitch.to(frames.dtype), (1 - depth).clamp(0, 1).to(frames.dtype)


def yin_frame_size(sample_rate: int, min_pitch: float) -> int:
    """Samples that `yin` takes: two of the longest periods and what its smoothing uses up."""
    return 2 * (_longest_period(sample_rate, min_pitch) + 1) + _smoothing(sample_rate) - 1


def _longest_period(sample_rate: int, min_pitch: float) -> int:
    return math.ceil(sample_rate / min_pitch)


def _smoothing(sample_rate: int) -> int:
    """1 ms in samples: high harmonics repeat badly where the period is no whole number of samples."""
    return max(1, sample_rate // 1000)


def _moving_average(frames: Tensor, size: int) -> Tensor:
    total = torch.nn.functional.pad(frames.cumsum(-1), (1, 0))
    return (total[..., size:] - total[..., :-size]) / size


def normalised_difference(frames: Tensor, lags: int) -> Tensor:
    """(..., lags + 1): d[lag] over the mean of d[1] to d[lag], d the power of x[t + lag] - x[t]; 1 at lag 0."""
    size = frames.shape[-1]
    width, length = size - lags, _fast_length(size)
    spectrum = torch.fft.rfft(frames, length)
    head = torch.fft.rfft(frames[..., :width], length)
    product = torch.fft.irfft(spectrum * head.conj(), length)[..., : lags + 1]
    energy = torch.nn.functional.pad(frames.square().cumsum(-1), (1, 0))
    shifted = energy[..., width : width + lags + 1] - energy[..., : lags + 1]
    difference = (shifted + shifted[..., :1] - 2 * product).clamp(min=0)[..., 1:]
    total = difference.cumsum(-1)
    lag = torch.arange(1, lags + 1, dtype=frames.dtype, device=frames.device)
    normalised = torch.where(total > _SILENCE * width, difference * lag / total.clamp(min=_SILENCE), 1.0)
    return torch.nn.functional.pad(normalised, (1, 0), value=1.0)


def _first_dip(difference: Tensor) -> tuple[Tensor, Tensor]:
    """The index of the first local minimum below the threshold, or else of the lowest value; and whether there is one.

    The first and the last value are neighbours only: the index counts from the second.
    """
    left, middle, right = difference[..., :-2], difference[..., 1:-1], difference[..., 2:]
    minimum = (middle < left) & (middle <= right) & (middle < _DIP)
    found = minimum.any(-1)
    return torch.where(found, minimum.byte().argmax(-1), middle.argmin(-1)), found


def _parabolic_minimum(difference: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Place and value of the minimum of the parabola through three neighbours."""
    left, middle, right = difference.gather(-1, torch.stack([index - 1, index, index + 1], -1)).unbind(-1)
    curvature = left - 2 * middle + right
    offset = torch.where(curvature > 0, (left - right) / (2 * curvature.clamp(min=1e-12)), 0.0).clamp(-0.5, 0.5)
    return index + offset, middle - (left - right) * offset / 4
