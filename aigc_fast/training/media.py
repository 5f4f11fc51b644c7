"""What the training loop asks of a medium, images or sounds: batches of it, and files of samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aigc_fast.data import Dataset, ImageDataset, SoundDataset, shift
from aigc_fast.errors import UserError
from aigc_fast.generation import (
    Provenance,
    class_columns,
    draw,
    image_grid,
    sound_sequence,
    spectrogram_image,
    write_png,
    write_sound,
)
from aigc_fast.models import ImageModel, LatentModel, SoundModel
from aigc_fast.models.vocoder import AnalysedSounds
from aigc_fast.training.config import TrainingConfig

_ANALYSED_AT_ONCE = 16


class Medium(ABC):
    """A data set as a model's training needs it."""

    @abstractmethod
    def batch(self, indices: Tensor) -> Any:
        """What the model's trainer takes of the items at `indices` (n,), in the model's dtype on its device."""

    @abstractmethod
    def write_samples(self, model: LatentModel, seed: int, path: Path, provenance: Provenance) -> Tensor:
        """Draws samples and writes them.

        Args:
            model: to draw from.
            seed: of the draw.
            path: of the files, without their suffix.
            provenance: recorded in each file.

        Returns:
            A picture of them, (C, H, W) in [-1, 1].
        """


class Images(Medium):
    """Images, each moved at random.

    Args:
        model: to train.
        dataset: images of the model's shape.
        config: whose `shift` is the distance.

    Raises:
        UserError: when the distance is beyond the images' sides.
    """

    def __init__(self, model: ImageModel, dataset: ImageDataset, config: TrainingConfig) -> None:
        if config.shift > max(model.image_shape[1:]):
            raise UserError(f"shift={config.shift}: expected at most {max(model.image_shape[1:])}, the images' side")
        self.model, self.dataset, self.shift = model, dataset, config.shift

    def batch(self, indices: Tensor) -> Tensor:
        """Images (n, channels, height, width) in [-1, 1]."""
        return shift(self.dataset.batch(indices), self.shift).to(self.model.device, self.model.dtype)

    def write_samples(self, model: ImageModel, seed: int, path: Path, provenance: Provenance) -> Tensor:
        """A grid as PNG, a class in each column. See `Medium.write_samples`."""
        columns = class_columns(model, 8)
        grid = image_grid(draw(model, 8 * columns, seed=seed), columns)
        write_png(path.with_suffix(".png"), grid, provenance)
        return grid


class Sounds(Medium):
    """Sounds, analysed once and for all.

    Args:
        model: to train.
        dataset: sounds of the model's length and sample rate.
        config: whose `shift` must be 0.

    Raises:
        UserError: when there is a `shift`.
    """

    def __init__(self, model: SoundModel, dataset: SoundDataset, config: TrainingConfig) -> None:
        if config.shift:
            raise UserError(f"shift={config.shift}: it moves images; expected 0 for {model.name}")
        self.model, self.dataset = model, dataset

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
        """One sound of each class, one after the other, as WAV and as a spectrogram. See `Medium.write_samples`."""
        audio = sound_sequence(draw(model, class_columns(model, 6), seed=seed), model.sample_rate)
        write_sound(path.with_suffix(".wav"), audio, model.sample_rate, provenance)
        return spectrogram_image(audio, model.sample_rate)


def make_medium(model: LatentModel, dataset: Dataset, config: TrainingConfig) -> Medium:
    """The medium of a model.

    Raises:
        UserError: when the data set is of another medium, its items of another shape than the model's, or its classes
            not as many.
    """
    for name, value in dataset.shape.items():
        if not hasattr(model, name):
            raise UserError(f"{dataset.name}: holds {dataset.unit}, which {model.name} does not make")
        if getattr(model, name) != value:
            raise UserError(f"{dataset.name}: {name} is {value}, {model.name} was built for {getattr(model, name)}")
    if model.num_classes is not None and model.num_classes != dataset.num_classes:
        raise UserError(
            f"{dataset.name}: has {dataset.num_classes or 'no'} classes, {model.name} was built for {model.num_classes}"
        )
    medium = Sounds if isinstance(model, SoundModel) else Images
    return medium(model, dataset, config)
