"""WAV files of any sample format, read at any rate."""

from __future__ import annotations

import io
import logging
import math
import operator
import os
import re
import struct
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aigc_fast.errors import UserError
from aigc_fast.wording import counted

WAV_SUFFIXES = (".wav", ".wave")

log = logging.getLogger("aigc_fast")

_FORMATS = ("WAV", "WAVEX", "RF64")
# In an RF64 file: the size stands in its chunk ds64.
_IN_DS64 = 0xFFFFFFFF
# About half of what the field holds. Programs that do not know the length write this or more; files that are so long
# are rare, and cut ones among them rarer.
_NO_SIZE = 0x7FFFF000
_CHUNK_NAME = re.compile(rb"[ -~]{4}")
_OF_FORMAT = (b"fmt ", b"fact")
_ZERO_CROSSINGS = 10
_KAISER_BETA = 5.0
# Numbers that are looked at in one call, about.
_AT_ONCE = 1 << 22
# Of files that are brought to another rate: a few bytes that claim less would become hours of sound.
_LEAST_RATE, MAX_RATE = 100, 1_000_000


def read_wav(path: str | os.PathLike[str], sample_rate: int | None = None, mono: bool = True) -> tuple[Tensor, int]:
    """Reads a WAV file by libsndfile: 8, 16, 24 or 32 bits, float, double, μ-law or A-law, any number of channels.

    Args:
        path: the file.
        sample_rate: in Hz, to which the audio is resampled by `resample`; None keeps the file's.
        mono: whether to mix the channels down to their mean.

    Returns:
        (audio, sample_rate): float32 (T,), or (channels, T) if `mono` is False; integers are scaled to [-1, 1), floats
        are unchanged. 32-bit integers and doubles are rounded to float32.

    If the header's length does not match the file, the file is read to its end, with a line in the log `aigc_fast`.

    Raises:
        UserError: when the file is missing, empty, truncated, no WAV file, or its samples are NaN or infinity or become
            so when mixed or resampled; when a rate below 100 Hz or above 1 MHz should be brought to another; when the
            soundfile library is missing.
        TypeError, ValueError: on a sample rate that is no integer or not positive.
    """
    recording = read_recording(path, sample_rate, mono)
    if recording.repair:
        log.warning("%s: %s", path, recording.repair)
    return recording.audio, recording.sample_rate


class Recording(NamedTuple):
    """What a WAV file holds.

    Attributes:
        audio: as `read_wav` returns it.
        sample_rate: of the audio, in Hz.
        own_rate: the file's, in Hz.
        channels: the file's.
        repair: what was put right of its header; empty where nothing was wrong.
    """

    audio: Tensor
    sample_rate: int
    own_rate: int
    channels: int
    repair: str


def read_recording(path: str | os.PathLike[str], sample_rate: int | None = None, mono: bool = True) -> Recording:
    """`read_wav`, with more to tell of the file and nothing in the log."""
    samples, own_rate, repair = _samples(path)
    if not samples.numel():
        raise UserError(f"{path}: expected at least one sample, got none")
    audio = samples.mean(0) if mono else samples.contiguous()
    rate = own_rate if sample_rate is None else sample_rate
    if rate != own_rate and not _LEAST_RATE <= own_rate <= MAX_RATE:
        raise UserError(
            f"{path}: has {counted(own_rate, 'samples')} a second: expected {_LEAST_RATE} to {MAX_RATE} to bring it to "
            f"{rate}"
        )
    audio = resample(audio, own_rate, rate)
    if not audio.isfinite().all():
        raise UserError(
            f"{path}: expected finite samples, mixed and resampled too; the greatest is {samples.abs().max():.3g}"
        )
    return Recording(audio, rate, own_rate, len(samples), repair)


def _samples(path: str | os.PathLike[str]) -> tuple[Tensor, int, str]:
    """float32 (channels, T), the file's rate, and what was put right."""
    file, repair = _opened(path)
    with file:
        try:
            # Without the number of frames soundfile reads no codec that cannot seek, such as GSM 6.10.
            samples = file.read(file.frames, dtype="float32", always_2d=True)
        except soundfile_library().LibsndfileError as error:
            raise _damaged(path, error) from None
        return torch.from_numpy(samples).T, file.samplerate, repair


def resample(audio: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Resamples audio with a windowed sinc; differentiable.

    A linear-phase low-pass at the lower of the two Nyquist frequencies, with a Kaiser window of β = 5 over 10 zero
    crossings on each side; the audio is taken to be silent before its beginning and after its end.

    Args:
        audio: (..., T), floating-point.
        from_rate: in Hz.
        to_rate: in Hz.

    Returns:
        (..., ceil(T · to_rate / from_rate)), of the audio's dtype.

    Raises:
        TypeError, ValueError: if a rate is not an integer or not positive, or `audio` is not floating-point.

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
    phases = _phases_of_sinc(up, down, audio)
    taps = phases.shape[1]
    windows = torch.nn.functional.pad(audio, (taps // 2, taps // 2)).unfold(-1, taps, 1)
    ticks = torch.arange(-(-audio.shape[-1] * up // down), device=audio.device) * down
    parts = ticks.split(max(1, _AT_ONCE // max(1, taps * audio.shape[:-1].numel())))
    found = [(windows[..., part // up, :] * phases[part % up]).sum(-1) for part in parts]
    return torch.cat(found, -1)


def _phases_of_sinc(up: int, down: int, like: Tensor) -> Tensor:
    """(up, taps): the low-pass at `up` times the rate, as seen from each of `up` places between two samples."""
    slower = max(up, down)
    half = _ZERO_CROSSINGS * slower
    reach = half // up + 1
    found, total = like.new_empty(up, 2 * reach + 1), 0.0
    for taps in torch.arange(2 * reach + 1).split(max(1, _AT_ONCE // 8 // up)):
        at = torch.arange(up, dtype=torch.float64)[:, None] + (reach - taps) * up
        inside = 1 - (at / half).square()
        window = torch.special.i0(_KAISER_BETA * inside.clamp(min=0).sqrt()) * (inside >= 0)
        low_pass = torch.sinc(at / slower) * window
        found[:, taps] = low_pass.to(found)
        total += float(low_pass.sum())
    return found.mul_(up / total)


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


def _opened(path: str | os.PathLike[str]) -> tuple[Any, str]:
    """The `soundfile.SoundFile` of a whole WAV file, and what was corrected in its header.

    Raises:
        UserError: if the file is missing, empty, truncated or not a WAV file, or the soundfile library is missing.
    """
    soundfile = soundfile_library()
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not content:
        raise UserError(f"{path}: expected a WAV file, got an empty file")
    content, repair = _repaired(_without_id3(content), path)
    try:
        file = soundfile.SoundFile(io.BytesIO(content))
    except soundfile.LibsndfileError as error:
        # Chunks of metadata that it can't read are nothing to do without the sound for.
        bare = _bare(content)
        try:
            file = soundfile.SoundFile(io.BytesIO(bare))
        except soundfile.LibsndfileError:
            raise _damaged(path, error) from None
        repair = repair or f"{error.error_string.rstrip('.')}; read without the chunks that tell more than the format"
    if file.format not in _FORMATS:
        raise UserError(f"{path}: expected a WAV file, got {file.format}")
    return file, repair


def _damaged(path: str | os.PathLike[str], error: Any) -> UserError:
    return UserError(f"{path}: damaged, or no WAV file: {error.error_string}")


def _without_id3(content: bytes) -> bytes:
    """The content after a tag in front of it, for whose length libsndfile loses samples at the end."""
    if content[:3] != b"ID3" or len(content) < 10:
        return content
    # Seven bits a byte.
    return content[10 + sum(byte << (7 * place) for place, byte in enumerate(reversed(content[6:10]))) :]


class _Layout(NamedTuple):
    """Where a WAV file's samples are, by its header.

    Attributes:
        order: of bytes, as `struct` has it.
        start: of the samples.
        size: of the samples, as their chunk says.
        total: of the file, as its first chunk says.
        before: the chunks before the samples, whole.
    """

    order: str
    start: int
    size: int
    total: int
    before: tuple[bytes, ...]


def _repaired(content: bytes, path: str | os.PathLike[str]) -> tuple[bytes, str]:
    """The content, with the size of its samples put right, and what was wrong with it.

    Two sizes stand in the header, the samples' and the file's, and the length of the file is a third witness: two that
    agree are believed.
    """
    layout = _layout(content)
    if layout is None:
        return content, ""
    rest = len(content) - layout.start
    if layout.size > rest:
        if _is_cut(layout, len(content)):
            raise UserError(f"{path}: truncated: expected {layout.size} bytes of samples, got {rest}")
    else:
        end = layout.start + layout.size + layout.size % 2
        if end >= len(content) or _is_chunk(content, end, layout.order):
            return content, ""
        if layout.size and layout.start + layout.size <= layout.total < len(content):
            return content, f"{counted(len(content) - end, 'bytes')} after its end left out"
    repair = f"its header says {counted(layout.size, 'bytes')} of samples, the file holds {rest}"
    return _rebuilt(layout, content[layout.start :]), repair


def _is_cut(layout: _Layout, length: int) -> bool:
    """Whether a file that is shorter than its samples' size was longer once, as the file's own size says."""
    counts_header = layout.size in (length, length - 8)
    return layout.total >= layout.start + layout.size and layout.size < _NO_SIZE and not counts_header


def _is_chunk(content: bytes, at: int, order: str) -> bool:
    """Whether a whole chunk begins there."""
    if not _CHUNK_NAME.match(content, at) or at + 8 > len(content):
        return False
    return at + 8 + struct.unpack_from(f"{order}I", content, at + 4)[0] <= len(content)


def _rebuilt(layout: _Layout, samples: bytes) -> bytes:
    """A WAV file of the chunks before the samples and these."""
    padding = bytes(len(samples) % 2)
    size = struct.pack(f"{layout.order}I", min(len(samples), _IN_DS64 - 1))
    body = b"".join((b"WAVE", *layout.before, b"data", size, samples, padding))
    name = b"RIFX" if layout.order == ">" else b"RIFF"
    return name + struct.pack(f"{layout.order}I", min(len(body), _IN_DS64 - 1)) + body


def _bare(content: bytes) -> bytes:
    """A WAV file of the format and the samples alone; empty where there are none."""
    layout = _layout(content)
    if layout is None:
        return b""
    needed = tuple(chunk for chunk in layout.before if chunk[:4] in _OF_FORMAT)
    return _rebuilt(layout._replace(before=needed), content[layout.start : layout.start + layout.size])


def _layout(content: bytes) -> _Layout | None:
    """None where there are no samples, or no WAV file."""
    if content[:4] not in (b"RIFF", b"RIFX", b"RF64") or content[8:12] != b"WAVE":
        return None
    order = ">" if content[:4] == b"RIFX" else "<"
    (total,) = struct.unpack_from(f"{order}I", content, 4)
    before, long_sizes, at = [], None, 12
    while at + 8 <= len(content):
        name, size = struct.unpack_from(f"{order}4sI", content, at)
        start = at + 8
        if name == b"data":
            if size == _IN_DS64 and long_sizes:
                total, size = long_sizes
            return _Layout(order, start, size, total + 8, tuple(before))
        if name == b"ds64" and size >= 16 and start + 16 <= len(content):
            long_sizes = struct.unpack_from("<QQ", content, start)
        else:
            before.append(content[at:start] + content[start : start + size] + bytes(size % 2))
        at = start + size
        # Some writers leave the padding out.
        if content[at : at + 4] not in (b"fmt ", b"data"):
            at += size % 2
    return None
