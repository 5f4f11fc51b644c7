"""Making files of what models generate: grids, latent maps, spectrograms, sounds, clips; PNG, WAV, text, APNG, GIF and
MP4 with provenance."""

from aigc_fast.generation.grid import image_grid, to_uint8
from aigc_fast.generation.latent import class_columns, draw, interpolate, latent_manifold
from aigc_fast.generation.provenance import Provenance, provenance_of, read_provenance, write_png
from aigc_fast.generation.spectrogram import spectrogram_image
from aigc_fast.generation.text import read_text_provenance, write_text
from aigc_fast.generation.video import (
    clip_grid,
    contact_sheet,
    read_video_provenance,
    write_clips,
    write_video,
)
from aigc_fast.generation.wav import read_wav_provenance, sound_sequence, write_sound, write_wav

__all__ = [
    "Provenance",
    "class_columns",
    "clip_grid",
    "contact_sheet",
    "draw",
    "image_grid",
    "interpolate",
    "latent_manifold",
    "provenance_of",
    "read_provenance",
    "read_text_provenance",
    "read_video_provenance",
    "read_wav_provenance",
    "sound_sequence",
    "spectrogram_image",
    "to_uint8",
    "write_clips",
    "write_png",
    "write_sound",
    "write_text",
    "write_video",
    "write_wav",
]
