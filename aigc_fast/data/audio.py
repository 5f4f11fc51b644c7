"""WAV files of any sample format, read at any rate."""

from __future__ import annotations

import io
import math
import operator
import os
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from aigc_fast.errors import UserError

WAV_SUFFIXES = (".wav", ".wave")

_FORMATS = ("WAV", "WAVEX", "RF64")
# What programs write that do not know the length yet: such a file ends where it ends.
_UNKNOWN_SIZES = (0x7FFFF000, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
# In an RF64 file: the size stands in its chunk ds64.
_IN_DS64 = 0xFFFFFFFF
_ZERO_CROSSINGS = 10
_KAISER_BETA = 5.0
_RESAMPLED_AT_ONCE = 1 << 16


def read_wav(path: str | os.PathLike[str], sample_rate: int | None = None, mono: bool = True) -> tuple[Tensor, int]:
    """Reads a WAV file by libsndfile: 8, 16, 24 or 32 bits, float, double, μ-law or A-law, any number of channels.

    Args:
        path: the file.
        sample_rate: in Hz, to which the samples are brought by `resample`; None keeps the file's own.
        mono: mixes the channels down to their mean.

    Returns:
        (audio, sample_rate): float32 (T,), or (channels, T) where `mono` is False; integers scaled to [-1, 1), floats
        as they are. 32-bit integers and doubles are rounded to float32.

    Raises:
        UserError: when the file is missing, empty, truncated, no WAV file, or its samples are NaN or infinity or become
            so when mixed or resampled; when the soundfile library is missing.
        TypeError, ValueError: on a sample rate that is no integer or not positive.
    """
    samples, rate = _samples(path)
    if not samples.numel():
        raise UserError(f"{path}: expected at least one sample, got none")
    audio = samples.mean(0) if mono else samples.contiguous()
    if sample_rate is not None:
        audio, rate = resample(audio, rate, sample_rate), sample_rate
    if not audio.isfinite().all():
        raise UserError(
            f"{path}: expected finite samples, mixed and resampled too; the greatest is {samples.abs().max():.3g}"
        )
    return audio, rate


def _samples(path: str | os.PathLike[str]) -> tuple[Tensor, int]:
    """float32 (channels, T) and the file's rate."""
    with opened_wav(path) as file:
        try:
            # Without the number of frames soundfile reads no codec that cannot seek, such as GSM 6.10.
            samples = file.read(file.frames, dtype="float32", always_2d=True)
        except soundfile_library().LibsndfileError as error:
            raise _damaged(path, error) from None
        return torch.from_numpy(samples).T, file.samplerate


def resample(audio: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Brings audio to another sample rate by a windowed sinc, differentiably.

    A linear-phase low-pass at the lower Nyquist frequency, Kaiser window of β = 5 over 10 zero crossings to each side;
    what lies before and after the audio is silence.

    Args:
        audio: (..., T), floating-point.
        from_rate: in Hz.
        to_rate: in Hz.

    Returns:
        (..., ceil(T · to_rate / from_rate)), of the audio's dtype.

    Raises:
        TypeError, ValueError: on a rate that is no integer or not positive, or audio that is not floating-point.

    Equivalent to `scipy.signal.resample_poly(audio, to_rate, from_rate, axis=-1)`. Method: Smith and Gossett, "A
    flexible sampling-rate conversion method", 1984.
    """
    check_rate("from_rate", from_rate)
    check_rate("to_rate", to_rate)
    if audio.dim() < 1 or not audio.is_floating_point():
        raise ValueError(f"audio: expected (..., T), floating-point, got {tuple(audio.shape)}, {audio.dtype}")
    divisor = math.gcd(from_rate, to_rate)
    up, down = to_rate // divisor, from_rate // divisor
    if up == down or not audio.shape[-1]:
        return audio
    phases = _phases_of_sinc(up, down).to(audio)
    taps = phases.shape[1]
    windows = torch.nn.functional.pad(audio, (taps // 2, taps // 2)).unfold(-1, taps, 1)
    ticks = torch.arange(-(-audio.shape[-1] * up // down), device=audio.device) * down
    parts = [(windows[..., part // up, :] * phases[part % up]).sum(-1) for part in ticks.split(_RESAMPLED_AT_ONCE)]
    return torch.cat(parts, -1)


def _phases_of_sinc(up: int, down: int) -> Tensor:
    """float64 (up, taps): the low-pass at `up` times the rate, as seen from each of `up` places between two samples."""
    slower = max(up, down)
    half = _ZERO_CROSSINGS * slower
    at = torch.arange(-half, half + 1, dtype=torch.float64)
    window = torch.kaiser_window(2 * half + 1, periodic=False, beta=_KAISER_BETA, dtype=torch.float64)
    low_pass = torch.sinc(at / slower) * window
    low_pass = low_pass * (up / low_pass.sum())
    reach = half // up + 1
    before = reach * up - half
    padded = torch.nn.functional.pad(low_pass, (before, (2 * reach + 1) * up - before - len(low_pass)))
    return padded.view(2 * reach + 1, up).T.flip(1)


def check_rate(name: str, rate: int) -> None:
    """Raises TypeError on a rate that is no integer, ValueError on one that is not positive."""
    try:
        operator.index(rate)
    except TypeError:
        raise TypeError(f"{name}={rate!r}: expected an integer") from None
    if rate < 1:
        raise ValueError(f"{name}={rate}: expected a positive number of Hz")


def soundfile_library() -> ModuleType:
    """The soundfile module.

    Raises:
        UserError: when it is missing.
    """
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise UserError(f"WAV files need soundfile ({error}): pip install 'aigc-fast[audio]'") from None
    return soundfile


def opened_wav(path: str | os.PathLike[str]) -> Any:
    """The `soundfile.SoundFile` of a whole WAV file.

    Raises:
        UserError: when the file is missing, empty, truncated or no WAV file; when the soundfile library is missing.
    """
    soundfile = soundfile_library()
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    _check_length(content, path)
    try:
        file = soundfile.SoundFile(io.BytesIO(content))
    except soundfile.LibsndfileError as error:
        raise _damaged(path, error) from None
    if file.format not in _FORMATS:
        raise UserError(f"{path}: expected a WAV file, got {file.format}")
    return file


def _damaged(path: str | os.PathLike[str], error: Any) -> UserError:
    return UserError(f"{path}: damaged, or no WAV file: {error.error_string}")


def _check_length(content: bytes, path: str | os.PathLike[str]) -> None:
    """libsndfile reads a truncated file as a shorter one."""
    if not content:
        raise UserError(f"{path}: expected a WAV file, got an empty file")
    if content[:4] not in (b"RIFF", b"RIFX", b"RF64"):
        return
    chunks = _chunks(content, ">" if content[:4] == b"RIFX" else "<")
    at, size = chunks.get(b"data", (0, 0))
    if size == _IN_DS64 and b"ds64" in chunks and chunks[b"ds64"][0] + 16 <= len(content):
        (size,) = struct.unpack_from("<Q", content, chunks[b"ds64"][0] + 8)
    if size not in _UNKNOWN_SIZES and at + size > len(content):
        raise UserError(f"{path}: truncated: expected {size} bytes of samples, got {max(0, len(content) - at)}")


def _chunks(content: bytes, order: str) -> dict[bytes, tuple[int, int]]:
    """Where the contents of the chunks begin, up to the samples, and their sizes, by name."""
    found: dict[bytes, tuple[int, int]] = {}
    at = 12
    while b"data" not in found and at + 8 <= len(content):
        name, size = struct.unpack_from(f"{order}4sI", content, at)
        found[name] = at + 8, size
        at += 8 + size + size % 2
    return found
