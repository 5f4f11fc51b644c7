"""Fréchet distance between two sets of features."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast.checks import check_finite, check_real


def _gaussian(features: Tensor, name: str) -> tuple[Tensor, Tensor]:
    features = features.detach().double()
    covariance = torch.cov(features.T, correction=1).reshape(features.shape[1], -1)
    if not bool(covariance.isfinite().all()):
        raise ValueError(f"{name}: expected features whose squares float64 holds, got up to {features.abs().max():.1e}")
    return features.mean(dim=0), covariance


def _root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def frechet_between(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """The Fréchet distance between two Gaussians, ‖m₁−m₂‖² + Tr(C₁ + C₂ − 2(C₁C₂)^½) (Dowson and Landau, 1982).

    Args:
        mean_a: (D,) float64.
        cov_a: (D, D) float64, symmetric positive semi-definite.
        mean_b: as `mean_a`.
        cov_b: as `cov_a`.
    """
    root = _root(cov_a)
    # C₁C₂ and C₁^½ C₂ C₁^½ have the same eigenvalues, and the second is symmetric.
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(distance.item(), 0.0)


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """The Fréchet distance between Gaussians fitted to two sets of features (Heusel et al. 2017, arXiv:1706.08500).

    0 means the same mean and covariance; smaller is better. The estimate is biased upwards for small sets: compare
    figures only for equal sizes and the same features.

    Args:
        real: (N, D) features of any real dtype, finite, N >= 2.
        generated: (M, D) features likewise, M >= 2, on the same device.

    Returns:
        The squared distance, computed in float64.

    Raises:
        TypeError: if an argument is not a Tensor.
        ValueError: for other shapes, dtypes or devices, or values that are not finite.
    """
    check_features(real, generated, 2, "N >= 2")
    return frechet_between(*_gaussian(real, "real"), *_gaussian(generated, "generated"))


def check_features(real: Tensor, generated: Tensor, least: int, said: str) -> None:
    """Refuses, by name, what are not two sets (N, D) and (M, D) of finite features, each of at least so many samples.

    Args:
        real: (N, D).
        generated: (M, D).
        least: of N and M.
        said: how the message says that.
    """
    check_real(real=real, generated=generated)
    for name, features in (("real", real), ("generated", generated)):
        if features.dim() != 2 or len(features) < least or not features.shape[1]:
            raise ValueError(f"{name}: expected (N, D) features with {said}, D >= 1, got shape {tuple(features.shape)}")
    if real.shape[1] != generated.shape[1]:
        raise ValueError(f"generated: expected {real.shape[1]} features as in real, got {generated.shape[1]}")
    if real.device != generated.device:
        raise ValueError(f"generated: expected real's device {real.device}, got {generated.device}")
    check_finite(real=real, generated=generated)
