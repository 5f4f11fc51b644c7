"""All image metrics in one report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from aigc_fast.checks import check_finite, check_floating, integer
from aigc_fast.metrics.classifier import MOST_OF_PIXELS, ImageClassifier, load_classifier
from aigc_fast.metrics.diversity import class_spread
from aigc_fast.metrics.frechet import frechet_distance
from aigc_fast.metrics.neighbours import density_coverage, nearest_neighbours, precision_recall


@dataclass(frozen=True)
class ImageReport:
    """The result of `evaluate_images`.

    Attributes:
        count: number of generated images.
        training_count: number of training images they were compared with.
        frechet: Fréchet distance of their features to those of the training images; smaller is better.
        frechet_of_training: the same between the two halves of the training set: about the best possible.
        precision: share of generated images that lie among the training images.
        recall: share of training images that lie among the generated ones.
        density: how densely the neighbourhoods of training images are filled; about 1 is ideal.
        coverage: share of training images with a generated image nearby.
        nearest: median distance to the nearest training image, root mean square per pixel, pixels in [-1, 1].
        nearest_of_training: the same from a training image to the others; a model whose figure is far smaller copies.
        class_histogram: share of the generated images in each class, by the classifier.
        effective_classes: exp of that histogram's entropy: 10 when even, 1 when collapsed.
        training_effective_classes: the same for the training images.
    """

    count: int
    training_count: int
    frechet: float
    frechet_of_training: float
    precision: float
    recall: float
    density: float
    coverage: float
    nearest: float
    nearest_of_training: float
    class_histogram: tuple[float, ...]
    effective_classes: float
    training_effective_classes: float

    def as_dict(self) -> dict[str, Any]:
        """The attributes as a JSON-able dictionary."""
        return asdict(self)


def evaluate_images(
    generated: Tensor, training: Tensor, *, classifier: ImageClassifier | None = None, k: int = 5
) -> ImageReport:
    """Measures generated images against the training images, on a small classifier's features.

    Args:
        generated: (N, C, H, W) in [-1, 1], floating-point, N > max(k, 3).
        training: (M, C, H, W) likewise, of the same C, H, W, M > max(2k, 3).
        classifier: whose features to use; default the one that ships with the package, trained on digits. Figures on
            images of other things compare models on the same data, but mean less.
        k: neighbours for density and coverage; precision and recall use 3.

    Returns:
        The report.

    Raises:
        TypeError: if an argument is not a Tensor, or k not an integer.
        ValueError: for other shapes or dtypes, too few images, or pixels that are not finite.
    """
    check_floating(generated=generated, training=training)
    k = integer("k", k, 1)
    if generated.dim() != 4 or generated.shape[1:] != training.shape[1:]:
        raise ValueError(
            f"generated: expected images of shape {tuple(training.shape[1:])} as in training, "
            f"got a tensor of shape {tuple(generated.shape)}"
        )
    for name, images, least in (("generated", generated, max(k, 3) + 1), ("training", training, max(2 * k, 3) + 1)):
        if len(images) < least:
            raise ValueError(f"{name}: expected at least {least} images, got {len(images)}")
    if not training.shape[1:].numel():
        raise ValueError(f"training: expected images (M, C, H, W) with pixels, got shape {tuple(training.shape)}")
    check_finite(MOST_OF_PIXELS, generated=generated, training=training)
    classifier = classifier or load_classifier()
    real, fake = classifier.features_of(training), classifier.features_of(generated)
    fidelity, variety = precision_recall(real, fake), density_coverage(real, fake, k)
    spread = class_spread(classifier.classify(fake))
    return ImageReport(
        count=len(generated),
        training_count=len(training),
        frechet=frechet_distance(real, fake),
        frechet_of_training=frechet_distance(real[::2], real[1::2]),
        precision=fidelity.precision,
        recall=fidelity.recall,
        density=variety.density,
        coverage=variety.coverage,
        nearest=_median(nearest_neighbours(generated, training).distance),
        nearest_of_training=_median(nearest_neighbours(training, training, skip_self=True).distance),
        class_histogram=spread.histogram,
        effective_classes=spread.effective_classes,
        training_effective_classes=class_spread(classifier.classify(real)).effective_classes,
    )


def _median(values: Tensor) -> float:
    return torch.quantile(values, 0.5).item()
