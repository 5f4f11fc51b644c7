"""Measures that look at nearest neighbours: fidelity, variety and copying."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aigc_fast.checks import check_finite, check_real, integer
from aigc_fast.generation.grid import image_grid
from aigc_fast.metrics.frechet import check_features

CHUNK = 1024


@dataclass(frozen=True)
class PrecisionRecall:
    """Fidelity and variety, as shares in [0, 1].

    Attributes:
        precision: generated samples that lie among the real ones (fidelity).
        recall: real samples that lie among the generated ones (variety).
    """

    precision: float
    recall: float


@dataclass(frozen=True)
class DensityCoverage:
    """Precision and recall that single outliers among the real samples do not change.

    Attributes:
        density: in how many real samples' neighbourhoods a generated sample lies, relative to what real ones would
            give: about 1 for equal distributions, and may be above 1 (fidelity).
        coverage: the share in [0, 1] of real samples with a generated one in their neighbourhood (variety).
    """

    density: float
    coverage: float


@dataclass(frozen=True)
class Neighbours:
    """The training image that is nearest to each generated one.

    Attributes:
        distance: (N,), the root mean square difference per pixel from it.
        index: int64 (N,), its index.
    """

    distance: Tensor
    index: Tensor


def _checked(real: Tensor, generated: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Both in float64 and in one unit, in which squares are normal numbers."""
    check_features(real, generated, integer("k", k, 1) + 1, f"N > k = {k}")
    return tuple(
        features / _unit(real, generated) for features in (real.detach().double(), generated.detach().double())
    )


def _unit(*tensors: Tensor) -> Tensor:
    """A power of two next to the greatest value, by which division is exact."""
    greatest = torch.stack([tensor.detach().abs().max().double() for tensor in tensors]).max()
    return torch.ldexp(torch.ones_like(greatest), torch.frexp(greatest).exponent.clamp(-1000, 1000).double())


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _radii(features: Tensor, k: int) -> Tensor:
    """The distance of each sample to its k-th nearest other sample."""
    parts = [
        # The nearest is the sample itself at distance 0.
        _distances(features[i : i + CHUNK], features).kthvalue(k + 1, dim=1).values
        for i in range(0, len(features), CHUNK)
    ]
    return torch.cat(parts)


def _count_inside(points: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """For each point, how many of the balls around the centres hold it."""
    parts = [(_distances(points[i : i + CHUNK], centres) <= radii).sum(dim=1) for i in range(0, len(points), CHUNK)]
    return torch.cat(parts)


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991, equations 1 and 2).

    Each set's manifold is the union of balls around its samples that reach to their k-th nearest neighbour.

    Args:
        real: (N, D) features of any real dtype, finite, N > k.
        generated: (M, D) features likewise, M > k, on the same device.
        k: neighbours; the paper's 3 by default.

    Returns:
        Precision and recall.

    Raises:
        TypeError: if an argument is not a Tensor, or k not an integer.
        ValueError: for other shapes, dtypes or devices, too few samples, or values that are not finite.
    """
    real, generated = _checked(real, generated, k)
    inside_real = _count_inside(generated, real, _radii(real, k)) > 0
    inside_generated = _count_inside(real, generated, _radii(generated, k)) > 0
    return PrecisionRecall(inside_real.double().mean().item(), inside_generated.double().mean().item())


def density_coverage(real: Tensor, generated: Tensor, k: int = 5) -> DensityCoverage:
    """Density and coverage (Naeem et al. 2020, arXiv:2002.09797, equations 3 and 4), which outliers do not mislead.

    Args:
        real: (N, D) features of any real dtype, finite, N > k.
        generated: (M, D) features likewise, M > k, on the same device.
        k: neighbours; the paper's 5 by default.

    Returns:
        Density and coverage.

    Raises:
        TypeError: if an argument is not a Tensor, or k not an integer.
        ValueError: for other shapes, dtypes or devices, too few samples, or values that are not finite.
    """
    real, generated = _checked(real, generated, k)
    radii = _radii(real, k)
    density = _count_inside(generated, real, radii).double().mean() / k
    nearest = torch.cat([_distances(real[i : i + CHUNK], generated).amin(dim=1) for i in range(0, len(real), CHUNK)])
    return DensityCoverage(density.item(), (nearest <= radii).double().mean().item())


def nearest_neighbours(images: Tensor, training: Tensor, *, skip_self: bool = False) -> Neighbours:
    """The training image nearest to each image, pixel by pixel: a small distance means that the model copies.

    Args:
        images: (N, C, H, W) of any real dtype, finite.
        training: (M, C, H, W) likewise, of the same C, H, W, on the same device; M at least 1.
        skip_self: leave out equal indices, to measure a training set against itself; M is at least 2 then.

    Returns:
        Root mean square distances per pixel and indices.

    Raises:
        TypeError: if an argument is not a Tensor.
        ValueError: for other shapes, dtypes or devices, or values that are not finite.
    """
    _check_images(images, training, 1 + skip_self)
    unit = _unit(training, *([images] if len(images) else []))
    flat, reference = (tensor.detach().flatten(1).double() / unit for tensor in (images, training))
    indices = []
    for i in range(0, len(flat), CHUNK):
        part = torch.cdist(flat[i : i + CHUNK], reference)
        if skip_self:
            rows = torch.arange(len(part))
            part[rows, rows + i] = torch.inf
        indices.append(part.argmin(dim=1))
    index = torch.cat(indices) if indices else torch.empty(0, dtype=torch.int64)
    # The matrix product behind cdist loses digits near 0, so the chosen pairs are measured again.
    distance = (flat - reference[index]).square().mean(dim=1).sqrt() * unit
    return Neighbours(distance, index)


def _check_images(images: Tensor, training: Tensor, least: int) -> None:
    check_real(images=images, training=training)
    if images.dim() != 4 or not images.shape[1:].numel():
        raise ValueError(f"images: expected (N, C, H, W) with pixels, got shape {tuple(images.shape)}")
    if images.shape[1:] != training.shape[1:] or len(training) < least:
        raise ValueError(
            f"training: expected images of shape {tuple(images.shape[1:])}, at least {least}, "
            f"got {tuple(training.shape)} to compare with"
        )
    if images.device != training.device:
        raise ValueError(f"training: expected images' device {images.device}, got {training.device}")
    check_finite(images=images, training=training)


def pairing_grid(images: Tensor, training: Tensor, neighbours: Neighbours, columns: int = 10) -> Tensor:
    """Each generated image above its nearest training image.

    Args:
        images: (N, C, H, W).
        training: (M, C, H, W).
        neighbours: from `nearest_neighbours(images, training)`.
        columns: pairs per row.

    Returns:
        One image, (C, height, width).

    Raises:
        TypeError: for images that are no tensors.
        ValueError: for images of unlike shapes, or neighbours of others.
    """
    check_real(images=images, training=training)
    if images.shape[1:] != training.shape[1:] or len(neighbours.index) != len(images):
        raise ValueError(
            f"neighbours: expected those of images {tuple(images.shape)} in training {tuple(training.shape)}, "
            f"got {len(neighbours.index)}"
        )
    pairs = torch.cat([images, training[neighbours.index].to(images.dtype)], dim=2)
    return image_grid(pairs, columns)
