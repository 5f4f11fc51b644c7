"""Training data: images (digits, MNIST's files, a folder), sounds (vowels and strings, a folder of WAV files), text,
pairs of texts, clips (digits that move, a folder of animations)."""

from aigc_fast.data.audio import read_wav, resample
from aigc_fast.data.dataset import Dataset, ImageDataset, shift
from aigc_fast.data.pairs import PairDataset, load_pairs
from aigc_fast.data.readers import digits, load
from aigc_fast.data.sounds import SoundDataset, load_sounds, vowels_and_strings
from aigc_fast.data.text import TextDataset, TokenDataset, load_text
from aigc_fast.data.videos import VideoDataset, load_videos, moving_digits

__all__ = [
    "Dataset",
    "ImageDataset",
    "PairDataset",
    "SoundDataset",
    "TextDataset",
    "TokenDataset",
    "VideoDataset",
    "digits",
    "load",
    "load_pairs",
    "load_sounds",
    "load_text",
    "load_videos",
    "moving_digits",
    "read_wav",
    "resample",
    "shift",
    "vowels_and_strings",
]
