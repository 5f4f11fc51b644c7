"""Training data: images (digits, MNIST's files, a folder) and sounds (vowels and strings, a folder of WAV files)."""

from aigc_fast.data.audio import read_wav, read_wav_provenance, resample, write_wav
from aigc_fast.data.dataset import ImageDataset, shift
from aigc_fast.data.readers import digits, load
from aigc_fast.data.sounds import SoundDataset, load_sounds, vowels_and_strings

__all__ = [
    "ImageDataset",
    "SoundDataset",
    "digits",
    "load",
    "load_sounds",
    "read_wav",
    "read_wav_provenance",
    "resample",
    "shift",
    "vowels_and_strings",
    "write_wav",
]
