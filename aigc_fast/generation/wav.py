"""WAV files that carry their provenance."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aigc_fast.data.audio import check_rate, opened_wav, soundfile_library
from aigc_fast.errors import UserError
from aigc_fast.files import atomic
from aigc_fast.generation.provenance import RECORD, Provenance, from_record, software_of, to_record, write_png
from aigc_fast.generation.spectrogram import spectrogram_image

LABEL = "AI-generated audio"

# libsndfile writes longer comments, but then reads none of the file's strings.
_COMMENT_BYTES = 2045
_MAX_RATE = 2**31 - 1
_PIXELS_PER_SECOND, _MAX_PIXELS = 128, 4096


def read_wav_provenance(path: str | os.PathLike[str]) -> Provenance:
    """Reads what `write_wav` recorded.

    Raises:
        UserError: when the file is not a WAV file or carries no record of this package.
    """
    with opened_wav(path) as file:
        text = file.comment if file.software.startswith(f"{RECORD} ") else None
    return from_record(text, path)


def write_wav(path: str | os.PathLike[str], audio: Tensor, sample_rate: int, provenance: Provenance) -> Path:
    """Writes a 16-bit WAV file with its provenance in the file's own metadata; whole, or not at all.

    The RIFF INFO strings are the title "AI-generated audio", the software, and a JSON record as the comment.

    Args:
        path: the file to write; its folder must exist.
        audio: (T,) or (channels, T), floating-point; values outside [-1, 1) are clipped, NaN becomes silence.
        sample_rate: in Hz.
        provenance: what to record.

    Raises:
        UserError: when the file can't be written; when the soundfile library is missing.
        TypeError: on a sample rate that is no integer.
        ValueError: on audio of another shape or type, a sample rate that is not positive or beyond WAV's 2³¹ − 1, or a
            record of more than 2,045 bytes, which libsndfile can't read.
    """
    if audio.dim() not in (1, 2) or not audio.is_floating_point() or not audio.numel():
        raise ValueError(
            "audio: expected (T,) or (channels, T), floating-point and not empty, "
            f"got {tuple(audio.shape)}, {audio.dtype}"
        )
    check_rate("sample_rate", sample_rate)
    if sample_rate > _MAX_RATE:
        raise ValueError(f"sample_rate={sample_rate}: expected at most {_MAX_RATE}")
    record = to_record(provenance)
    if len(record) > _COMMENT_BYTES:
        raise ValueError(f"provenance: expected at most {_COMMENT_BYTES} bytes as JSON, got {len(record)}")
    soundfile = soundfile_library()
    samples = _to_int16(audio)
    with atomic(path) as temporary:
        try:
            with soundfile.SoundFile(temporary, "w", sample_rate, samples.shape[1], "PCM_16", format="WAV") as file:
                file.title, file.software, file.comment = LABEL, software_of(provenance), record
                file.write(samples)
        except soundfile.LibsndfileError as error:
            raise UserError(f"cannot write {path}: {error.error_string}") from None
    return Path(path)


def sound_sequence(audio: Tensor, sample_rate: int, *, pause: float = 0.1) -> Tensor:
    """Sounds one after the other.

    Args:
        audio: (N, T), N at least 1.
        sample_rate: in Hz.
        pause: silence between two sounds, in seconds.

    Returns:
        (N · T + (N - 1) · P,), P samples a pause.

    Raises:
        ValueError: on another shape, or a pause below 0.
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


def _to_int16(audio: Tensor) -> Any:
    """int16 array (T, channels)."""
    scaled = torch.nan_to_num(audio.detach().double().cpu(), nan=0.0) * 32768
    samples = scaled.round().clamp(-32768, 32767).to(torch.int16)
    return samples.reshape(-1, samples.shape[-1]).T.contiguous().numpy()
