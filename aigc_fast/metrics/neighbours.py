"""Measures that look at nearest neighbours: fidelity, variety and copying."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aigc_fast.generation.grid import image_grid

CHUNK = 1024


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares in [0, 1].

    Attributes:
        precision: generated samples that lie among the real ones (fidelity).
        recall: real samples that lie among the generated ones (variety).
    """

    precision: float
    recall: float


@dataclass(frozen=True)
class DensityCoverage:
    """Attributes:
    density: how many real neighbourhoods hold a generated sample, over what real data would give; about 1 for
        equal distributions, and may exceed 1.
    coverage: share in [0, 1] of real samples with a generated one in their neighbourhood.
    """

    density: float
    coverage: float


@dataclass(frozen=True)
class Neighbours:
    """Attributes:
    distance: (N,) root mean square difference per pixel to the nearest training image.
    index: (N,) int64 index of that training image.
    """

    distance: Tensor
    index: Tensor


def _checked(real: Tensor, generated: Tensor, k: int) -> tuple[Tensor, Tensor]:
    for name, features in (("real", real), ("generated", generated)):
        if features.dim() != 2 or len(features) <= k:
            raise ValueError(f"{name}: expected (N, D) features with N > k = {k}, got shape {tuple(features.shape)}")
    if k < 1:
        raise ValueError(f"k={k}: expected at least 1")
    if real.shape[1] != generated.shape[1]:
        raise ValueError(f"generated: expected {real.shape[1]} features as in real, got {generated.shape[1]}")
    return real.detach().double(), generated.detach().double()


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
        real: (N, D) features, N > k.
        generated: (M, D) features, M > k.
        k: neighbours; the paper's 3 by default.

    Raises:
        ValueError: on other shapes or too few samples.
    """
    real, generated = _checked(real, generated, k)
    inside_real = _count_inside(generated, real, _radii(real, k)) > 0
    inside_generated = _count_inside(real, generated, _radii(generated, k)) > 0
    return PrecisionRecall(inside_real.double().mean().item(), inside_generated.double().mean().item())


def density_coverage(real: Tensor, generated: Tensor, k: int = 5) -> DensityCoverage:
    """Density and coverage (Naeem et al. 2020, arXiv:2002.09797, equations 3 and 4), which outliers do not mislead.

    Args:
        real: (N, D) features, N > k.
        generated: (M, D) features, M > k.
        k: neighbours; the paper's 5 by default.

    Raises:
        ValueError: on other shapes or too few samples.
    """
    real, generated = _checked(real, generated, k)
    radii = _radii(real, k)
    density = _count_inside(generated, real, radii).double().mean() / k
    nearest = torch.cat([_distances(real[i : i + CHUNK], generated).amin(dim=1) for i in range(0, len(real), CHUNK)])
    return DensityCoverage(density.item(), (nearest <= radii).double().mean().item())


def nearest_neighbours(images: Tensor, training: Tensor, *, skip_self: bool = False) -> Neighbours:
    """The training image nearest to each image, pixel by pixel: a small distance means that the model copies.

    Args:
        images: (N, C, H, W).
        training: (M, C, H, W), of the same C, H, W.
        skip_self: leave out equal indices, to measure a training set against itself.

    Returns:
        Root mean square distances per pixel and indices.

    Raises:
        ValueError: on other shapes.
    """
    if images.dim() != 4 or images.shape[1:] != training.shape[1:] or len(training) <= skip_self:
        raise ValueError(
            f"training: expected images of shape {tuple(images.shape[1:])}, got {tuple(training.shape)} to compare with"
        )
    flat, reference = images.detach().flatten(1).double(), training.detach().flatten(1).double()
    indices = []
    for i in range(0, len(flat), CHUNK):
        part = torch.cdist(flat[i : i + CHUNK], reference)
        if skip_self:
            rows = torch.arange(len(part))
            part[rows, rows + i] = torch.inf
        indices.append(part.argmin(dim=1))
    index = torch.cat(indices) if indices else torch.empty(0, dtype=torch.int64)
    # The matrix product behind cdist loses digits near 0, so the chosen pairs are measured again.
    distance = (flat - reference[index]).square().mean(dim=1).sqrt()
    return Neighbours(distance, index)


def pairing_grid(images: Tensor, training: Tensor, neighbours: Neighbours, columns: int = 10) -> Tensor:
    """Each generated image above its nearest training image.

    Args:
        images: (N, C, H, W).
        training: (M, C, H, W).
        neighbours: from `nearest_neighbours(images, training)`.
        columns: pairs per row.

    Returns:
        One image, (C, height, width).
    """
    pairs = torch.cat([images, training[neighbours.index].to(images.dtype)], dim=2)
    return image_grid(pairs, columns)
