"""How good, how varied and how original generated images are, and how near generated sounds."""

from aigc_fast.metrics.classifier import ImageClassifier, load_classifier, train_classifier
from aigc_fast.metrics.diversity import ClassSpread, class_spread
from aigc_fast.metrics.frechet import frechet_distance
from aigc_fast.metrics.images import ImageReport, evaluate_images
from aigc_fast.metrics.neighbours import (
    DensityCoverage,
    Neighbours,
    PrecisionRecall,
    density_coverage,
    nearest_neighbours,
    pairing_grid,
    precision_recall,
)
from aigc_fast.metrics.sounds import SoundReport, evaluate_sounds, pairwise_spectral_distance
from aigc_fast.models.vocoder.spectral import multi_resolution_spectral_distance

__all__ = [
    "ClassSpread",
    "DensityCoverage",
    "ImageClassifier",
    "ImageReport",
    "Neighbours",
    "PrecisionRecall",
    "SoundReport",
    "class_spread",
    "density_coverage",
    "evaluate_images",
    "evaluate_sounds",
    "frechet_distance",
    "load_classifier",
    "multi_resolution_spectral_distance",
    "nearest_neighbours",
    "pairing_grid",
    "pairwise_spectral_distance",
    "precision_recall",
    "train_classifier",
]
