"""Sounds: WAV files, sequences of them, and how near they come to the training sounds."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from aigc_fast import data
from aigc_fast.data import SoundDataset
from aigc_fast.data.audio import WAV_SUFFIXES
from aigc_fast.data.sounds import DEFAULT_RATE
from aigc_fast.generation import (
    Provenance,
    class_columns,
    draw,
    read_wav_provenance,
    sound_sequence,
    spectrogram_image,
    write_sound,
)
from aigc_fast.media.kinds import INTERPOLATION, SEQUENCE, SHARD_SIZE, SHARDS, SINGLE
from aigc_fast.media.medium import ItemFeed, Medium, check_unmoved
from aigc_fast.metrics import SoundReport, evaluate_sounds
from aigc_fast.models import Model, SoundModel
from aigc_fast.models.vocoder import AnalysedSounds
from aigc_fast.settings import Setting

if TYPE_CHECKING:
    from aigc_fast.training import TrainingConfig

_ANALYSED_AT_ONCE = 16


class SoundFeed(ItemFeed):
    """Sounds, analysed once and for all.

    Args:
        model: to train.
        dataset: sounds of the model's length and sample rate.
        config: whose `shift` must be 0.

    Raises:
        UserError: when there is a `shift`.
    """

    def __init__(self, model: SoundModel, dataset: SoundDataset, config: TrainingConfig) -> None:
        check_unmoved(model, config)
        super().__init__(model, dataset, config)

    @cached_property
    def _analysed(self) -> AnalysedSounds:
        parts = self.dataset.audio.split(_ANALYSED_AT_ONCE)
        with torch.no_grad():
            return AnalysedSounds.concatenated(
                [self.model.analyse(part.to(self.model.device, self.model.dtype)) for part in parts]
            )

    def batch(self, indices: Tensor) -> AnalysedSounds:
        """Sounds (n, T) with their frames."""
        return self._analysed[indices.to(self.model.device)]

    def write_samples(self, model: SoundModel, seed: int, path: Path, provenance: Provenance) -> Tensor:
        """One sound of each class, one after the other, as WAV and as a spectrogram. See `Feed.write_samples`."""
        audio = sound_sequence(draw(model, class_columns(model, 6), seed=seed), model.sample_rate)
        write_sound(path.with_suffix(".wav"), audio, model.sample_rate, provenance)
        return spectrogram_image(audio, model.sample_rate)


class Audio(Medium):
    """See `Medium`; items are sounds (N, T)."""

    name = "audio"
    unit = SoundDataset.unit
    model = SoundModel
    suffixes = WAV_SUFFIXES
    beside = (".png",)
    files = "for audio a folder of WAV files, likewise"
    embedded = "the vowels and strings"
    data_settings = (
        Setting("seconds", float, "Length of the sounds (vocoder).", default="1.0", shapes_model=True),
        Setting(
            "sample_rate",
            int,
            "Bring the sounds to this many Hz (vocoder).",
            default=str(DEFAULT_RATE),
            least=1,
            shapes_model=True,
        ),
    )
    kinds = MappingProxyType({SEQUENCE: 6, SINGLE: 6, INTERPOLATION: 1, SHARDS: SHARD_SIZE})
    evaluated = 60
    rows = (
        (
            "Distance to the nearest training sound",
            "nearest",
            "{:.2f}",
            "{nearest_of_training:.2f} between training sounds; {nearest_of_noise:.2f} from noise",
        ),
        ("From training sounds to the nearest of these", "reach", "{:.2f}", "{nearest_of_training:.2f}"),
        (
            "To the nearest other one of these",
            "spread",
            "{:.2f}",
            "{nearest_of_training:.2f}; near 0 is a collapsed model",
        ),
    )

    def load(self, path: Path | None, **settings: Any) -> SoundDataset:
        """See `Medium.load`."""
        return data.load_sounds(path, **settings)

    def load_for(self, model: SoundModel, path: Path | None, **reading: Any) -> SoundDataset:
        """See `Medium.load_for`."""
        return data.load_sounds(path, seconds=model.length / model.sample_rate, sample_rate=model.sample_rate)

    def load_like(self, training: SoundDataset, folder: Path, **reading: Any) -> SoundDataset:
        """See `Medium.load_like`."""
        return data.load_sounds(folder, sample_rate=training.sample_rate)

    def is_item(self, path: Path) -> bool:
        """See `Medium.is_item`."""
        return path.suffix.lower() in WAV_SUFFIXES

    def items(self, dataset: SoundDataset) -> Tensor:
        """See `Medium.items`."""
        return dataset.audio

    def feed(self, model: SoundModel, dataset: SoundDataset, config: TrainingConfig) -> SoundFeed:
        """See `Medium.feed`."""
        return SoundFeed(model, dataset, config)

    def joined(self, model: SoundModel, items: Tensor, columns: int | None) -> Tensor:
        """See `Medium.joined`: one after the other."""
        return sound_sequence(items, model.sample_rate)

    def write(self, path: Path, piece: Tensor, model: SoundModel, provenance: Provenance, scale: int) -> None:
        """See `Medium.write`: with the spectrogram."""
        write_sound(path, piece, model.sample_rate, provenance)

    def read_provenance(self, path: Path) -> Provenance:
        """See `Medium.read_provenance`."""
        return read_wav_provenance(path)

    def measure(self, items: Tensor, training: SoundDataset, model: Model | None) -> SoundReport:
        """See `Medium.measure`."""
        return evaluate_sounds(items.cpu(), training.audio)


AUDIO = Audio()
