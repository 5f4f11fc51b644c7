"""Sounds to train on: vowels and plucked strings that the package makes itself, or a folder of WAV files."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aigc_fast import functional
from aigc_fast.checks import as_path, check_seed, integer
from aigc_fast.data.audio import MAX_RATE, WAV_SUFFIXES, read_recording
from aigc_fast.data.dataset import Dataset
from aigc_fast.data.folder import files_below, find_files, indexed
from aigc_fast.data.notes import Notes, some, text_of
from aigc_fast.errors import UserError
from aigc_fast.models.vocoder import pulse_train
from aigc_fast.runtime.arguments import number, whole
from aigc_fast.wording import counted

DEFAULT_RATE = 16000
VOWELS = ("a", "e", "i", "o", "u")
STRING = "string"

# Mean pitch and first three formants in Hz of 33 men, 28 women and 15 children, the vowels of hod, head, heed, hawed
# and who'd: Peterson and Barney, "Control methods used in a study of the vowels", 1952.
_PITCHES = (129.0, 217.0, 266.0)
_FORMANTS = (
    ((730, 1090, 2440), (530, 1840, 2480), (270, 2290, 3010), (570, 840, 2410), (300, 870, 2240)),
    ((850, 1220, 2810), (610, 2330, 2990), (310, 2790, 3310), (590, 920, 2710), (370, 950, 2670)),
    ((1030, 1370, 3170), (690, 2610, 3570), (370, 3200, 3730), (680, 1060, 3180), (430, 1170, 3260)),
)
_HIGHER_FORMANTS = (4200.0, 5200.0)
_BANDWIDTHS = (70.0, 90.0, 140.0, 220.0, 300.0)
# A healthy voice has 0.5 to 1 % from one period to the next.
_JITTER = 0.005
_BREATH = 0.01
_PEAK = 0.8
# Beyond what is recorded, and a quarter of an hour at 16 kHz: more than a model can be built for.
_MAX_LENGTH = 1 << 24
# Floats overshoot full scale, 1, by a few times at most; beyond they are integers of 16, 24 or 32 bits.
_LOUDEST, _FULL_SCALES = 8.0, (1 << 15, 1 << 23, 1 << 31)


@dataclass(frozen=True)
class SoundDataset(Dataset):
    """Sounds of one length; see `Dataset`.

    Attributes:
        audio: float32 (N, T), in [-1, 1].
        labels: int64 (N,), or None without classes.
        class_names: the names of the classes, in the labels' order; empty without classes.
        sample_rate: in Hz.
        name: where the sounds come from, for logs and provenance.
        notes: what was left out, changed or corrected when they were read, in lines to show.
    """

    unit = "sounds"
    audio: Tensor
    labels: Tensor | None
    class_names: tuple[str, ...]
    sample_rate: int
    name: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.audio)

    @property
    def shape(self) -> dict[str, Any]:
        """`{"length": samples of each sound, "sample_rate": Hz}`."""
        return {"length": self.audio.shape[1], "sample_rate": self.sample_rate}

    def _form(self) -> str:
        return f"{self.audio.shape[1] / self.sample_rate:g} s at {self.sample_rate} Hz"

    def _content(self) -> Tensor:
        return self.audio


def load_sounds(
    path: str | os.PathLike[str] | None = None,
    *,
    seconds: float = 1.0,
    sample_rate: int = DEFAULT_RATE,
    seed: int = 0,
) -> SoundDataset:
    """Loads training sounds.

    Args:
        path: None for `vowels_and_strings`; or a folder of WAV files, whose subfolders are classes. Each file is cut
            into segments. A shorter last one is padded with silence if it is at least half a segment or the whole
            file, and left out otherwise.
        seconds: length of each sound or segment.
        sample_rate: in Hz; files of other rates are resampled to it.
        seed: of the sounds that the package synthesizes.

    Returns:
        The sounds; floats above full scale that are integers' values are scaled like integers. `notes` says what was
        left out, padded, scaled, resampled or read in spite of a wrong header.

    Raises:
        TypeError: if an argument is of another type; the message names it.
        UserError: if the folder is missing or holds no WAV files, a file is damaged or holds values far above full
            scale, the length is not between 1 and 2²⁴ samples, or the rate is above 1 MHz, or below 12,000 Hz for
            synthesized sounds.
    """
    check_seed(seed)
    if not 1 <= whole("sample_rate", sample_rate) <= MAX_RATE:
        raise UserError(f"sample_rate={sample_rate}: expected 1 to {MAX_RATE} Hz")
    samples = number("seconds", seconds) * sample_rate
    if samples > _MAX_LENGTH:
        raise UserError(f"seconds={seconds}: expected at most {_MAX_LENGTH} samples, got {samples:g}")
    length = round(samples) if samples >= 0 else 0
    if length < 1:
        raise UserError(f"seconds={seconds}: expected at least one sample at {sample_rate} Hz")
    if path is None:
        return vowels_and_strings(length, sample_rate=sample_rate, seed=seed)
    path = as_path("path", path)
    if not path.is_dir():
        what = "expected a folder of WAV files, got a file" if path.exists() else "no such folder"
        raise UserError(f"{path}: {what}")
    return _read_folder(path, length, sample_rate)


def find_sounds(folder: Path, notes: Notes | None = None) -> list[tuple[Path, str | None]]:
    """The WAV files of a folder with their classes: `find_files`."""
    return find_files(folder, WAV_SUFFIXES, notes, "WAV file")


def _read_folder(path: Path, length: int, sample_rate: int) -> SoundDataset:
    notes = Notes(path)
    try:
        found = find_sounds(path, notes)
        if not found:
            raise _without_sounds(path)
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from None
    segments = [_segments(file, length, sample_rate, notes) for file, _ in found]
    _bring_to_full_scale([file for file, _ in found], segments, notes)
    classes = [name for (_, name), part in zip(found, segments, strict=True) for _ in part]
    return SoundDataset(torch.cat(segments), *indexed(classes), sample_rate, text_of(path.name), notes.lines)


def _without_sounds(folder: Path) -> UserError:
    there = [text_of(path.relative_to(folder)) for path in files_below(folder)]
    but = f", but {counted(len(there), 'files')}: {some(there)}" if there else ""
    return UserError(f"{folder}: holds no WAV files ({', '.join(WAV_SUFFIXES)}){but}")


def _bring_to_full_scale(files: list[Path], segments: list[Tensor], notes: Notes) -> None:
    """Divides, in place, floats that hold the values of integers by the most that such integers have."""
    peaks = [part.abs().max().item() for part in segments]
    beyond = {place: peak for place, peak in enumerate(peaks) if peak > _LOUDEST}
    if not beyond:
        return
    loudest = max(beyond, key=beyond.__getitem__)
    full = next((level for level in _FULL_SCALES if beyond[loudest] <= level), None)
    if full is None:
        raise UserError(f"{files[loudest]}: expected samples from -1 to 1, or integers, got {beyond[loudest]:g}")
    for place, peak in beyond.items():
        segments[place] /= full
        notes.add(f"of floats as large as integers, {full} taken for full scale", files[place], f"up to {peak:g}")


def _segments(path: Path, length: int, sample_rate: int, notes: Notes) -> Tensor:
    """(N, length): a file's sound, cut up."""
    recording = read_recording(path, sample_rate)
    audio = recording.audio
    if recording.repair:
        notes.add("not as long as the header says", path, recording.repair)
    if recording.own_rate != sample_rate:
        notes.add(f"brought to {sample_rate} Hz", path, f"from {recording.own_rate} Hz")
    if recording.channels > 1:
        notes.add("mixed down to one channel", path, f"from {recording.channels}")
    if not audio.any():
        notes.add("of nothing but silence", path)
    rest = len(audio) % length
    if rest and rest == len(audio):
        notes.add(f"shorter than {length} samples, filled up with silence", path, counted(rest, "samples"))
    elif 2 * rest >= length:
        notes.add("whose last segment was filled up with silence", path, f"{rest} of {length} samples")
    elif rest:
        notes.add("whose last segment, below half of a sound, was left out", path, f"{rest} of {length} samples")
        audio = audio[: len(audio) - rest]
    return torch.nn.functional.pad(audio, (0, -len(audio) % length)).view(-1, length)


def vowels_and_strings(
    length: int = DEFAULT_RATE, *, sample_rate: int = DEFAULT_RATE, each: int = 8, seed: int = 0
) -> SoundDataset:
    """Synthesizes vowels of men, women and children, and plucked strings; the same for the same arguments.

    Args:
        length: of each sound, in samples.
        sample_rate: in Hz, at least 12,000: the highest formant is below half of it.
        each: number of sounds of each vowel and kind of speaker; there are as many strings as sounds of one vowel.
        seed: of pitches, jitter and noise.

    Returns:
        18 · each sounds in the classes a, e, i, o, u and string.

    Raises:
        TypeError: if an argument is not an integer; the message names it.
        UserError: if `length` or `each` is not positive, or the rate is lower.
    """
    for name, value, least in (("length", length, 1), ("each", each, 1), ("sample_rate", sample_rate, 12000)):
        integer(name, value, least)
    check_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    sounds, labels = [], []
    for pitch, formants_of_vowels in zip(_PITCHES, _FORMANTS, strict=True):
        for label, formants in enumerate(formants_of_vowels):
            pitches = pitch * 2 ** ((functional.rand(each, generator=generator) - 0.5) / 2)
            sounds.append(vowels(pitches, formants, length, sample_rate, generator))
            labels += [label] * each
    for _ in range(len(_PITCHES) * each):
        pitch = 80.0 * 2 ** (2 * functional.rand(1, generator=generator).item())
        sounds.append(plucked_string(pitch, length, sample_rate, generator)[None])
        labels.append(len(VOWELS))
    return SoundDataset(torch.cat(sounds), torch.tensor(labels), (*VOWELS, STRING), sample_rate, "vowels and strings")


def vowels(
    pitches: Tensor, formants: tuple[float, ...], length: int, sample_rate: int, generator: torch.Generator
) -> Tensor:
    """One vowel at several pitches: a glottal pulse train with jitter and breath through resonators in series.

    Args:
        pitches: (N,), in Hz; each falls by a tenth to the end.
        formants: the three lowest resonances, in Hz.
        length: T, in samples.
        sample_rate: in Hz.
        generator: of the jitter and the breath.

    Returns:
        (N, T), the peak at 0.8.

    Method: Klatt, "Software for a cascade/parallel formant synthesizer", 1980.
    """
    fall = torch.linspace(1, 0.9, length)
    pitch = pitches[:, None] * fall * (1 + _JITTER * _slow_noise(len(pitches), length, sample_rate, generator))
    breath = functional.randn(len(pitches), length, generator=generator)
    # The glottal flow falls by 12 dB an octave and the lips give 6 back: one pole is left.
    sound = functional.ar_recursion(pulse_train(pitch, sample_rate) + _BREATH * breath, torch.tensor([0.95]))
    for frequency, bandwidth in zip((*formants, *_HIGHER_FORMANTS), _BANDWIDTHS, strict=True):
        sound = functional.ar_recursion(sound, _resonator(frequency, bandwidth, sample_rate))
    return _normalised(sound)


def _slow_noise(count: int, length: int, sample_rate: int, generator: torch.Generator) -> Tensor:
    """(count, length) of unit deviation, changing about every 5 ms: a new value with every glottal cycle or so."""
    points = max(2, 200 * length // sample_rate)
    values = functional.randn(count, 1, points, generator=generator)
    return torch.nn.functional.interpolate(values, length, mode="linear", align_corners=True)[:, 0]


def _resonator(frequency: float, bandwidth: float, sample_rate: int) -> Tensor:
    """(2,): the coefficients of a pair of poles at a frequency, of a bandwidth, in Hz."""
    radius = math.exp(-math.pi * bandwidth / sample_rate)
    return torch.tensor([2 * radius * math.cos(2 * math.pi * frequency / sample_rate), -(radius**2)])


def plucked_string(pitch: float, length: int, sample_rate: int, generator: torch.Generator) -> Tensor:
    """(length,): noise of one period that goes round in a delay line and loses its high harmonics first.

    The pitch in Hz is brought to the nearest that the line can have, a sample rate over a whole number and a half.

    Method: Karplus and Strong, "Digital synthesis of plucked-string and drum timbres", 1983.
    """
    delay = max(2, round(sample_rate / pitch - 0.5))
    burst = torch.zeros(length)
    pluck = functional.rand(min(delay, length), generator=generator) * 2 - 1
    burst[: len(pluck)] = pluck - pluck.mean()
    coeffs = torch.zeros(delay + 1)
    coeffs[-2:] = 0.5 * 0.999
    return _normalised(functional.ar_recursion(burst, coeffs))


def _normalised(sounds: Tensor) -> Tensor:
    return sounds * (_PEAK / sounds.abs().amax(-1, keepdim=True).clamp(min=1e-9))
