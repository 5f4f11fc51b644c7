"""Mode collapse, seen through a classifier."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aigc_fast.checks import check_finite, check_real


@dataclass(frozen=True)
class ClassSpread:
    """How samples are spread over K classes.

    Attributes:
        histogram: (K,), the share of the samples in each class.
        entropy: of the histogram, in nats: log K if all classes are equally frequent, 0 if there is only one.
        effective_classes: exp(entropy), from 1 (collapsed) to K (even).
    """

    histogram: tuple[float, ...]
    entropy: float
    effective_classes: float


def class_spread(logits: Tensor) -> ClassSpread:
    """How evenly samples fall into a classifier's classes: a generator that collapsed leaves classes out.

    Args:
        logits: (N, K) of any real dtype, finite, N >= 1.

    Returns:
        The histogram over the classes, and its entropy.

    Raises:
        TypeError: if an argument is not a Tensor.
        ValueError: for another shape or dtype, or values that are not finite.
    """
    check_real(logits=logits)
    if logits.dim() != 2 or logits.numel() == 0:
        raise ValueError(f"logits: expected a non-empty (N, K) tensor, got shape {tuple(logits.shape)}")
    check_finite(logits=logits)
    counts = torch.bincount(logits.argmax(dim=1), minlength=logits.shape[1]).double()
    share = counts / counts.sum()
    entropy = torch.special.entr(share).sum()
    return ClassSpread(tuple(share.tolist()), entropy.item(), entropy.exp().item())
