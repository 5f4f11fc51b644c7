"""Estimators of autoregressions, in float64: each fits all series of a batch, and all orders up to p, at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from aigc_fast.models.ar.checks import check_choice
from aigc_fast.ops.recursion.operators import RECURSION_LAGS
from aigc_fast.ops.recursion.reflection import coeffs_of_reflection

# A lag whose part that the other lags don't explain is less than this share of its energy is rounding error.
_INDEPENDENT = 1e-14
# What rounding may add to a reflection coefficient.
_EXACT = 1e-10
# Powers of two up to this one, and their inverses, are normal numbers.
_GREATEST_EXPONENT = 1000
_EPSILON = torch.finfo(torch.float64).eps


class Estimate(NamedTuple):
    """What an estimator finds, in float64.

    Attributes:
        coeffs: (B, p), of order p.
        intercept: (B,), of order p.
        deviations: (B, p + 1), the innovations' standard deviation at the orders 0 to p; the variance of a series of
            very small or great values would leave the format's range.
        samples: how many samples the fit predicts.
    """

    coeffs: Tensor
    intercept: Tensor
    deviations: Tensor
    samples: int


class Centred(NamedTuple):
    """Series brought to mean 0 and to a size whose squares are normal numbers.

    Attributes:
        values: (B, T + 1), with a 0 after the end.
        mean: (B,), what was taken off, of the values' size.
        size: (B,), a power of two, what the values were divided by.
        name: the caller's.
    """

    values: Tensor
    mean: Tensor
    size: Tensor
    name: str

    @property
    def length(self) -> int:
        return self.values.shape[1] - 1


def centre(x: Tensor, intercept: bool = True, name: str = "x") -> Centred:
    """Series (B, T) less their mean, near 1 in size; without an intercept, only the latter."""
    count, length = x.shape
    values, size = torch.empty(count, length + 1, dtype=torch.float64, device=x.device), _size(x)
    values[:, length] = 0
    of_series = values[:, :length]
    torch.mul(x, 1 / size[:, None], out=of_series)
    mean = of_series.mean(1) if intercept else values[:, length].clone()
    if intercept:
        of_series -= mean[:, None]
    return Centred(values, mean, size, name)


def _size(x: Tensor) -> Tensor:
    """(B,), the power of two next to the greatest value of each series; by it, division is exact."""
    greatest = _small(torch.stack(x.aminmax(dim=1)).abs().amax(0).double())
    exponents = np.frexp(np.where(np.isfinite(greatest), greatest, 1))[1]
    return torch.from_numpy(np.ldexp(1.0, exponents.clip(-_GREATEST_EXPONENT, _GREATEST_EXPONENT))).to(x.device)


def lag_products(series: Centred, order: int) -> Tensor:
    """(B, p + 1), the sum over t of x[t] x[t - i] for i from 0 to p; 0 before the beginning.

    Raises:
        ValueError: for a series that is not finite or does not vary.
    """
    values = series.values
    # The op's lags begin at 1: a series that is one step ahead makes them begin at 0.
    ahead = torch.nn.functional.pad(values[:, :1], (0, order))
    products = RECURSION_LAGS(values[:, :-1], values[:, 1:], ahead, order + 1, False, 1)
    energy = products[:, 0]
    _refuse(series.name, ~energy.isfinite(), "has values that are not finite: expected finite values")
    rounding = series.length * (8 * _EPSILON * series.mean).square()
    _refuse(series.name, energy <= rounding, "is constant: expected a series that varies")
    return products


def _refuse(name: str, bad: Tensor, why: str) -> None:
    if bool(bad.any()):
        raise ValueError(f"{name} {why}; the first such series is number {int(bad.nonzero()[0])}")


def least_squares(x: Tensor, order: int, intercept: bool) -> Estimate:
    """Regression of x[t] on x[t - 1], ..., x[t - p] for t from p on, through the normal equations."""
    series = centre(x, intercept)
    products = lag_products(series, order)
    samples = series.length - order
    edges = _edge_windows(series.values[:, :-1], order).flatten(1, 2)
    gram = _toeplitz(products) - edges.mT @ edges
    sums = -edges.sum(1)
    if intercept:
        gram = gram - sums[:, :, None] * sums[:, None] / samples
    factor = _cholesky(gram[:, 1:, 1:])
    whitened = torch.linalg.solve_triangular(factor, gram[:, 1:, :1], upper=False)
    coeffs = torch.linalg.solve_triangular(factor.mT, whitened, upper=True)[..., 0]
    # The factor of a smaller order is a corner of this one, so its residual is a partial sum.
    explained = torch.nn.functional.pad(whitened[..., 0].square().cumsum(1), (1, 0))
    offset = (sums[:, 0] - (coeffs * sums[:, 1:]).sum(1)) / samples if intercept else 0
    return _estimate(series, coeffs, offset, (gram[:, 0, :1] - explained) / samples, samples)


def _toeplitz(products: Tensor) -> Tensor:
    """(B, p + 1, p + 1), the products of all windows x[t], ..., x[t - p], with 0 past the ends."""
    lags = torch.arange(products.shape[1], device=products.device)
    return products[:, (lags[:, None] - lags).abs()]


def _edge_windows(x: Tensor, order: int) -> Tensor:
    """(B, 2, p, p + 1), the windows x[t], ..., x[t - p] that reach past the beginning or the end, with 0 there.

    The products of all windows make a Toeplitz matrix; less these windows' products, those within the series are left.
    The first m windows' first m + 1 values are the windows of order m.
    """
    # One 0 more than there are windows for: of order 0 there are none, but unfold wants one.
    head = torch.nn.functional.pad(x[:, :order], (order, 1))
    tail = torch.nn.functional.pad(x[:, x.shape[1] - order :], (0, order + 1))
    return torch.stack([part.unfold(1, order + 1, 1)[:, :order] for part in (head, tail)], 1).flip(3)


def _cholesky(gram: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(gram)
    own = factor.diagonal(dim1=1, dim2=2).square()
    dependent = (own <= _INDEPENDENT * gram.diagonal(dim1=1, dim2=2)).any(1)
    _refuse(
        "x",
        (failed > 0) | dependent,
        f"is predicted without error by less than {gram.shape[1]} lags, which leaves the coefficients undetermined: "
        "expected a smaller order or a series with noise",
    )
    return factor


def _estimate(series: Centred, coeffs: Tensor, offset: Tensor | float, variances: Tensor, samples: int) -> Estimate:
    """What was found for the centred series, whose intercept is `offset`, said of the series that were given."""
    intercept = series.mean * (1 - coeffs.sum(1)) + offset
    deviations = variances.clamp_min(0).sqrt() * series.size[:, None]
    return Estimate(coeffs, intercept * series.size, deviations, samples)


def yule_walker(x: Tensor, order: int, intercept: bool) -> Estimate:
    """The solution of the Yule-Walker equations of the biased autocovariance."""
    series = centre(x, intercept)
    products = lag_products(series, order)
    return _of_reflection(series, products[:, 0], _schur(products))


def _schur(products: Tensor) -> Tensor:
    """(B, p), the reflection coefficients of an autocovariance (B, p + 1).

    Levinson's recursion in Schur's form, which needs no coefficients on the way.
    """
    values = _small(products)
    forward, backward, found = values[:, 1:], values[:, :-1], np.empty((values.shape[1] - 1, len(values), 1))
    with np.errstate(all="ignore"):
        for k in found:
            k[:] = np.where(backward[:, :1] > 0, forward[:, :1] / backward[:, :1], 0)
            forward, backward = forward[:, 1:] - k * backward[:, 1:], backward[:, :-1] - k * forward[:, :-1]
    return torch.from_numpy(found[..., 0].T.copy()).to(products)


def burg(x: Tensor, order: int, intercept: bool) -> Estimate:
    """Least forward and backward prediction error, one reflection coefficient k after the other.

    The variance is Levinson's, the series' own times the product of 1 - k². It falls with every order, as a likelihood
    should; the mean square of the errors, which statsmodels' `burg` returns, leaves out the series' ends at each order.
    """
    series = centre(x, intercept)
    products = lag_products(series, order)
    reflection, exact = _burg_of_products(series, products)
    if not exact:
        reflection = _burg_of_errors(series, order)
    return _of_reflection(series, products[:, 0], reflection)


def _burg_of_products(series: Centred, products: Tensor) -> tuple[Tensor, bool]:
    """(B, p), the reflection coefficients, and whether rounding leaves them exact.

    The errors' energies are quadratic forms of the error filter in the lag products, so the series is read once (Vos,
    "A Fast Implementation of Burg's Method", 2013). Where little is left to predict, these forms cancel.
    """
    order = products.shape[1] - 1
    edges, gram = _small(_edge_windows(series.values[:, :-1], order)), _small(_toeplitz(products))
    # The forward and the backward error filter, which is one lag behind.
    filters = np.zeros((len(gram), order + 1, 2))
    filters[:, 0, 0] = filters[:, 1:2, 1] = 1
    found, totals, sizes = np.empty((3, order, len(gram)))
    with np.errstate(all="ignore"):
        for size in range(order):
            beyond = edges[:, :, size]
            gram -= beyond.swapaxes(1, 2) @ beyond
            energies = filters.swapaxes(1, 2) @ (gram @ filters)
            totals[size] = energies[:, 0, 0] + energies[:, 1, 1]
            sizes[size] = np.abs(filters[:, :, 0]).sum(1)
            k = found[size] = 2 * energies[:, 0, 1] / totals[size]
            forward, backward = filters[:, :, 0], filters[:, :, 1]
            following = np.zeros_like(filters)
            following[:, :, 0] = forward - k[:, None] * backward
            following[:, 1:, 1] = (backward - k[:, None] * forward)[:, :-1]
            filters = following
        bounds = _EPSILON * _small(products)[:, 0] * sizes**2 / totals
    return torch.from_numpy(found.T.copy()).to(products), bool(((bounds > 0) & (bounds <= _EXACT)).all())


def _small(tensor: Tensor) -> np.ndarray:
    """Few numbers for NumPy, whose calls cost a tenth of PyTorch's."""
    return tensor.numpy(force=True)


def _burg_of_errors(series: Centred, order: int) -> Tensor:
    """(B, p), the reflection coefficients from the prediction errors themselves, in one pass for each order."""
    forward, backward = series.values[:, 1:-1], series.values[:, :-2]
    found = []
    for _ in range(order):
        # Rows of the batch as matrices of one row, whose product takes no memory of the series' size.
        product, of_forward, of_backward = (
            (a[:, None] @ b[:, :, None])[:, 0]
            for a, b in ((forward, backward), (forward, forward), (backward, backward))
        )
        k = _ratio(2 * product, of_forward + of_backward)
        found.append(k)
        forward, backward = _lattice(forward, backward, k)
    return torch.cat(found, 1)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """0 where nothing is left to predict."""
    return torch.where(denominator > 0, numerator / denominator, 0)


def _lattice(forward: Tensor, backward: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """The prediction errors of the next order, those of both directions that overlap; k (B, 1)."""
    return (
        torch.addcmul(forward[:, 1:], k, backward[:, 1:], value=-1),
        torch.addcmul(backward[:, :-1], k, forward[:, :-1], value=-1),
    )


def _of_reflection(series: Centred, energy: Tensor, reflection: Tensor) -> Estimate:
    coeffs = coeffs_of_reflection(reflection)
    left = torch.nn.functional.pad((1 - reflection.square()).cumprod(1), (1, 0), value=1.0)
    return _estimate(series, coeffs, 0, energy[:, None] / series.length * left, series.length)


METHODS: dict[str, Callable[[Tensor, int, bool], Estimate]] = {
    "least-squares": least_squares,
    "yule-walker": yule_walker,
    "burg": burg,
}
"""Estimators by name: of series (B, T), an order and whether there is an intercept."""


def estimate(x: Tensor, order: int, method: str, intercept: bool) -> Estimate:
    """`METHODS[method]` of series (B, T).

    Raises:
        ValueError: for an unknown method, or series that are too short, not finite, constant or, for least squares,
            predicted without error by fewer lags.
    """
    check_choice("method", method, METHODS)
    needed = 2 * order + 1 + intercept if method == "least-squares" else order + 1
    if x.shape[1] < needed:
        raise ValueError(f"x has {x.shape[1]} samples: expected at least {needed} for order {order} by {method}")
    return METHODS[method](x, order, intercept)
