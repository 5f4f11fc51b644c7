"""Vocoders: linear prediction, pitch, and back to sound; and a generator of new sounds that speaks in their frames."""

from aigc_fast.models.vocoder.source_filter import SourceFilterVocoder, VocoderFrames
from aigc_fast.models.vocoder.spectral import multi_resolution_spectral_distance
from aigc_fast.models.vocoder.synthesis import pulse_train
from aigc_fast.models.vocoder.vae import AnalysedSounds, VocoderVAE

__all__ = [
    "AnalysedSounds",
    "SourceFilterVocoder",
    "VocoderFrames",
    "VocoderVAE",
    "multi_resolution_spectral_distance",
    "pulse_train",
]
