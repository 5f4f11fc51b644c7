"""All sound metrics in one report, and how far sounds are apart, each from each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from aigc_fast import functional
from aigc_fast.models.vocoder.spectral import (
    RESOLUTIONS,
    check_resolutions,
    check_sounds,
    magnitudes,
    norm_of_reference,
)

_AT_ONCE = 64
_LOOKED_AT = 64


@dataclass(frozen=True)
class SoundReport:
    """The result of `evaluate_sounds`; all figures are multi-resolution spectral distances, 0 for equal spectra.

    Attributes:
        count: number of generated sounds.
        training_count: number of training sounds they were compared with.
        nearest: mean distance from a generated sound to its nearest training sound.
        nearest_of_training: the same from a training sound to the nearest other one, for at most 64 of them: about the
            best possible.
        nearest_of_noise: the same from white noise of the training sounds' power: unlike any of them.
        reach: mean distance from a training sound to its nearest generated sound; far above `nearest` if the model
            generates only some kinds of the training sounds.
        spread: the same from a generated sound to the nearest other one; near 0 for a model that repeats itself.
    """

    count: int
    training_count: int
    nearest: float
    nearest_of_training: float
    nearest_of_noise: float
    reach: float
    spread: float

    def as_dict(self) -> dict[str, Any]:
        """The attributes as a JSON-able dictionary."""
        return asdict(self)


def evaluate_sounds(generated: Tensor, training: Tensor) -> SoundReport:
    """Measures generated sounds against the training sounds.

    Args:
        generated: (N, T), float32 or float64, finite, N at least 2.
        training: (M, T), of the same T, dtype and device, finite, M at least 2.

    Returns:
        The report.

    Raises:
        TypeError: if an argument is not a Tensor.
        ValueError: for other shapes or dtypes, too few sounds, or samples that are not finite or whose spectra are not.
    """
    check_sounds(generated=generated, training=training)
    for name, sounds in (("generated", generated), ("training", training)):
        if sounds.dim() != 2 or len(sounds) < 2 or not sounds.shape[1]:
            raise ValueError(f"{name}: expected at least 2 sounds (N, T), got shape {tuple(sounds.shape)}")
    if generated.shape[1] != training.shape[1]:
        raise ValueError(f"generated: expected {training.shape[1]} samples as in training, got {generated.shape[1]}")
    noise = functional.randn(8, training.shape[1], generator=torch.Generator().manual_seed(0), dtype=training.dtype)
    noise = noise.to(training.device) * training.square().mean().sqrt()
    between = pairwise_spectral_distance(generated, training)
    return SoundReport(
        count=len(generated),
        training_count=len(training),
        nearest=between.amin(1).mean().item(),
        nearest_of_training=_to_nearest_other(training),
        nearest_of_noise=pairwise_spectral_distance(noise, training).amin(1).mean().item(),
        reach=between.amin(0).mean().item(),
        spread=_to_nearest_other(generated),
    )


def _to_nearest_other(sounds: Tensor) -> float:
    chosen = torch.arange(0, len(sounds), -(-len(sounds) // _LOOKED_AT), device=sounds.device)
    distances = pairwise_spectral_distance(sounds[chosen], sounds)
    return distances.scatter(1, chosen[:, None], torch.inf).amin(1).mean().item()


def pairwise_spectral_distance(
    audio: Tensor, references: Tensor, *, resolutions: Sequence[tuple[int, int, int]] = RESOLUTIONS
) -> Tensor:
    """`multi_resolution_spectral_distance` of each sound to each reference.

    Args:
        audio: (N, T), float32 or float64, finite.
        references: (M, T), of the same T, dtype and device, finite.
        resolutions: (FFT size, hop, window length) in samples.

    Returns:
        (N, M).

    Raises:
        TypeError: if an argument is not a Tensor.
        ValueError: for other shapes, dtypes or resolutions, or samples that are not finite or whose spectra are not.
    """
    check_sounds(audio=audio, references=references)
    check_resolutions(resolutions)
    if audio.dim() != 2 or references.dim() != 2 or audio.shape[1] != references.shape[1] or not audio.shape[1]:
        raise ValueError(
            "audio and references: expected (N, T) and (M, T) of one length and not empty, "
            f"got {tuple(audio.shape)} and {tuple(references.shape)}"
        )
    if not len(audio) or not len(references):
        return audio.new_zeros(len(audio), len(references))
    rows = [
        torch.cat([_block(part, others, resolutions) for others in references.split(_AT_ONCE)], 1)
        for part in audio.split(_AT_ONCE)
    ]
    return torch.cat(rows)


def _block(audio: Tensor, references: Tensor, resolutions: Sequence[tuple[int, int, int]]) -> Tensor:
    total = audio.new_zeros(len(audio), len(references))
    for resolution in resolutions:
        found, wanted = (magnitudes(sounds, *resolution) for sounds in (audio, references))
        norm = norm_of_reference(wanted, resolution[-1])
        found, wanted = found.flatten(1), wanted.flatten(1)
        # By a matrix product, which in float32 would not tell near sounds from equal ones.
        euclidean = torch.cdist(found.double(), wanted.double(), compute_mode="use_mm_for_euclid_dist")
        convergence = euclidean.to(total.dtype) / norm
        total += convergence + torch.cdist(found.log(), wanted.log(), p=1) / found.shape[1]
    return total / len(resolutions)
