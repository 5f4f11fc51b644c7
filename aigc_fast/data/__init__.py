"""Training data: digits, MNIST's files or a folder of images; and WAV files."""

from aigc_fast.data.audio import read_wav, read_wav_provenance, resample, write_wav
from aigc_fast.data.dataset import ImageDataset, shift
from aigc_fast.data.readers import digits, load

__all__ = [
    "ImageDataset",
    "digits",
    "load",
    "read_wav",
    "read_wav_provenance",
    "resample",
    "shift",
    "write_wav",
]
