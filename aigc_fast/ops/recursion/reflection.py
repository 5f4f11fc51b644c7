"""Reflection coefficients: the Levinson recursion, which tells a stable filter from any other."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast.runtime.recording import is_symbolic, record


def coeffs_of_reflection(reflection: Tensor) -> Tensor:
    """The AR coefficients whose partial autocorrelations are given (the step-up recursion). Differentiable.

    Args:
        reflection: (..., p); all within -1 to 1 for a stable recursion.

    Returns:
        (..., p): y[t] = x[t] + sum over i of coeffs[i - 1] y[t - i].
    """
    coeffs = reflection[..., :0]
    for k in reflection.split(1, -1):
        coeffs = step_up(coeffs, k)
    return coeffs


def step_up(coeffs: Tensor, k: Tensor) -> Tensor:
    """(..., p + 1): the coefficients (..., p) with one more reflection coefficient, k (..., 1)."""
    return torch.cat([coeffs - k * coeffs.flip(-1), k], -1)


def reflection_of_coeffs(coeffs: Tensor) -> Tensor:
    """The inverse, the step-down recursion: within -1 to 1 where the recursion is stable, and only there.

    Args:
        coeffs: (..., p).

    Returns:
        (..., p); infinite or NaN after a coefficient of exactly 1 or -1, which leaves the others undetermined.
    """
    found: list[Tensor] = []
    while coeffs.shape[-1]:
        k, rest = coeffs[..., -1:], coeffs[..., :-1]
        found.append(k)
        coeffs = (rest + k * rest.flip(-1)) / (1 - k * k)
    return torch.cat(found[::-1], -1) if found else coeffs


def greatest_reflection(dtype: torch.dtype) -> float:
    """The greatest reflection coefficient: rounded, tanh reaches 1, where no filter is stable."""
    return 1 - torch.finfo(dtype).eps


def stable_coeffs(raw: Tensor) -> Tensor:
    """The coefficients of a stable recursion from any numbers (..., p), whose tanh its reflection coefficients are."""
    if is_symbolic(raw):
        return record(stable_coeffs, raw)
    return coeffs_of_reflection(greatest_reflection(raw.dtype) * raw.tanh())
