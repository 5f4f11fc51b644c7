"""How well an autoregression fits: information criteria and the whiteness of what is left."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from aigc_fast.models.ar.fitting import centre, lag_products

_LOG_2PI = math.log(2 * math.pi)

CRITERIA: dict[str, Callable[[int], float]] = {"aic": lambda samples: 2.0, "bic": math.log}
"""What each parameter costs, of the number of samples."""


class OrderSelection(NamedTuple):
    """The order of least criterion, int64 () or (B,), and the criteria of the orders from 0 to m, (m + 1,) or
    (B, m + 1)."""

    order: Tensor
    criteria: Tensor


class Whiteness(NamedTuple):
    """A test's statistic and the probability of a greater one under white noise, each () or (B,)."""

    statistic: Tensor
    p_value: Tensor


def information(criterion: str, deviations: Tensor, samples: int, parameters: Tensor) -> Tensor:
    """-2 log-likelihood of Gaussian noise whose standard deviation is given, and the cost of the parameters."""
    return samples * (_LOG_2PI + 2 * deviations.log() + 1) + CRITERIA[criterion](samples) * parameters.double()


def ljung_box(residuals: Tensor, lags: int, order: int) -> Whiteness:
    """Ljung and Box's test of the residuals (B, n) of an autoregression of that order.

    Raises:
        ValueError: if residuals are constant or not finite.
    """
    n = residuals.shape[1]
    products = lag_products(centre(residuals, name="residuals of x"), lags)
    correlations = products[:, 1:] / products[:, :1]
    pairs = n - torch.arange(1, lags + 1, device=residuals.device)
    statistic = n * (n + 2) * (correlations.square() / pairs).sum(1)
    freedom = torch.full_like(statistic, lags - order)
    return Whiteness(statistic, torch.special.gammaincc(freedom / 2, statistic / 2))
