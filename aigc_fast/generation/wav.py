"""WAV files that carry their provenance."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from aigc_fast.data.audio import check_rate
from aigc_fast.errors import UserError
from aigc_fast.files import atomic
from aigc_fast.generation.provenance import RECORD, Provenance, from_record, software_of, to_record, write_png
from aigc_fast.generation.spectrogram import spectrogram_image

LABEL = "AI-generated audio"

# With a longer comment libsndfile reads none of the file's strings; with more channels, not the file.
_COMMENT_BYTES, _MAX_CHANNELS = 2045, 1024
_MAX_RATE, _MAX_SIZE = 2**31 - 1, 2**32 - 1
_PCM = 1
# WAV files of other orders and sizes, which this package does not write.
_OF_OTHERS = (b"RIFX", b"RF64")
# More than what stands before the samples.
_HEAD = 4096
_TITLE, _SOFTWARE, _COMMENT = b"INAM", b"ISFT", b"ICMT"
_PIXELS_PER_SECOND, _MAX_PIXELS = 128, 4096


def read_wav_provenance(path: str | os.PathLike[str]) -> Provenance:
    """Reads what `write_wav` recorded.

    Args:
        path: a WAV file.

    Returns:
        The record.

    Raises:
        UserError: if the file is not a WAV file or has no record of this package.
    """
    try:
        with open(path, "rb") as file:
            strings = _strings(file, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    ours = strings.get(_SOFTWARE, "").startswith(f"{RECORD} ")
    return from_record(strings.get(_COMMENT, "") if ours else None, path)


def _strings(file: BinaryIO, path: str | os.PathLike[str]) -> dict[bytes, str]:
    """The RIFF INFO strings of a WAV file, by their names."""
    head = file.read(12)
    if head[:4] not in (b"RIFF", *_OF_OTHERS) or head[8:] != b"WAVE":
        raise UserError(f"{path}: damaged, or no WAV file")
    found: dict[bytes, str] = {}
    if head[:4] in _OF_OTHERS:
        return found
    for name, size in _chunks(file):
        if name == b"LIST" and file.read(4) == b"INFO":
            end = file.tell() + size - 4
            for key, length in _chunks(file, end):
                found[key] = file.read(min(length, end - file.tell())).split(b"\0")[0].decode(errors="replace")
    return found


def _chunks(file: BinaryIO, end: int = _MAX_SIZE) -> Iterator[tuple[bytes, int]]:
    """Name and size of each chunk that follows, the file standing at its content."""
    while file.tell() + 8 <= end and len(head := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", head)
        start = file.tell()
        yield name, size
        file.seek(start + size + size % 2)


def write_wav(path: str | os.PathLike[str], audio: Tensor, sample_rate: int, provenance: Provenance) -> Path:
    """Writes a 16-bit WAV file with its provenance in the file's own metadata; whole, or not at all.

    The RIFF INFO strings are the title "AI-generated audio", the software, and a JSON record as the comment.

    Args:
        path: the file to write; its folder must exist.
        audio: (T,) or (channels, T), floating-point; values outside [-1, 1) are clipped, NaN becomes silence.
        sample_rate: in Hz.
        provenance: what to record.

    Returns:
        The path of the file.

    Raises:
        UserError: if the file can't be written.
        TypeError: if the sample rate is not an integer.
        ValueError: for audio of another shape or type, more than 1,024 channels or 4 GiB, a sample rate that is not
            positive or beyond WAV's 2³¹ − 1, or a record of more than 2,045 bytes, which libsndfile can't read.
    """
    if audio.dim() not in (1, 2) or not audio.is_floating_point() or not audio.numel():
        raise ValueError(
            "audio: expected (T,) or (channels, T), floating-point and not empty, "
            f"got {tuple(audio.shape)}, {audio.dtype}"
        )
    check_rate("sample_rate", sample_rate)
    if sample_rate > _MAX_RATE:
        raise ValueError(f"sample_rate={sample_rate}: expected at most {_MAX_RATE}")
    channels = audio.shape[0] if audio.dim() == 2 else 1
    if channels > _MAX_CHANNELS:
        raise ValueError(f"audio: expected at most {_MAX_CHANNELS} channels, got {channels}")
    if 2 * audio.numel() > _MAX_SIZE - _HEAD:
        raise ValueError(f"audio: expected at most {(_MAX_SIZE - _HEAD) // 2} samples in all, got {audio.numel()}")
    record = to_record(provenance)
    if len(record) > _COMMENT_BYTES:
        raise ValueError(f"provenance: expected at most {_COMMENT_BYTES} bytes as JSON, got {len(record)}")
    content = _riff(
        _to_int16(audio), sample_rate, {_TITLE: LABEL, _SOFTWARE: software_of(provenance), _COMMENT: record}
    )
    with atomic(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def _riff(samples: np.ndarray, sample_rate: int, strings: dict[bytes, str]) -> bytes:
    """A WAV file of int16 samples (T, channels) and RIFF INFO strings."""
    frame = 2 * samples.shape[1]
    bytes_a_second = min(frame * sample_rate, _MAX_SIZE)
    layout = struct.pack("<HHIIHH", _PCM, samples.shape[1], sample_rate, bytes_a_second, frame, 16)
    info = b"INFO" + b"".join(_chunk(name, text.encode() + b"\0") for name, text in strings.items())
    parts = _chunk(b"fmt ", layout), _chunk(b"LIST", info), _chunk(b"data", samples.astype("<i2").tobytes())
    return _chunk(b"RIFF", b"WAVE" + b"".join(parts))


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def sound_sequence(audio: Tensor, sample_rate: int, *, pause: float = 0.1) -> Tensor:
    """Joins sounds one after the other.

    Args:
        audio: (N, T), N at least 1.
        sample_rate: in Hz.
        pause: silence between two sounds, in seconds.

    Returns:
        (N · T + (N - 1) · P,), for pauses of P samples.

    Raises:
        ValueError: for another shape, or a pause below 0.
    """
    if audio.dim() != 2 or not audio.numel():
        raise ValueError(f"audio: expected (N, T) and not empty, got {tuple(audio.shape)}")
    if pause < 0:
        raise ValueError(f"pause={pause}: expected 0 or more seconds")
    silence = round(pause * sample_rate)
    sequence = torch.nn.functional.pad(audio, (0, silence)).flatten()
    return sequence[: len(sequence) - silence]


def write_sound(
    path: str | os.PathLike[str], audio: Tensor, sample_rate: int, provenance: Provenance
) -> tuple[Path, Path]:
    """Writes a WAV file, and its spectrogram as a PNG beside it, each with its provenance.

    Args:
        path: the WAV file; the PNG has its name with the suffix .png.
        audio: (T,), as for `write_wav`.
        sample_rate: in Hz.
        provenance: what to record in both.

    Returns:
        The paths of both.

    Raises:
        UserError, ValueError: as `write_wav`.
    """
    width = min(_MAX_PIXELS, max(_PIXELS_PER_SECOND, _PIXELS_PER_SECOND * len(audio) // sample_rate))
    wav = write_wav(path, audio, sample_rate, provenance)
    return wav, write_png(wav.with_suffix(".png"), spectrogram_image(audio, sample_rate, width=width), provenance)


def _to_int16(audio: Tensor) -> np.ndarray:
    """int16 array (T, channels)."""
    scaled = torch.nan_to_num(audio.detach().double().cpu(), nan=0.0) * 32768
    samples = scaled.round().clamp(-32768, 32767).to(torch.int16)
    return samples.reshape(-1, samples.shape[-1]).T.contiguous().numpy()
