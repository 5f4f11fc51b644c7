"""What the tests of ARModel share: series, and the methods of fitting."""

from __future__ import annotations

import numpy as np
import torch

from aigc_fast.models import ARModel

METHODS = ("least-squares", "yule-walker", "burg")
AR3 = (0.6, -0.4, 0.25)


def series(length=400, coeffs=AR3, intercept=1.5, paths=None, dtype=torch.float64):
    process = ARModel(coeffs=coeffs, intercept=intercept, noise_variance=0.5, dtype=dtype)
    return process.simulate(length, paths, burn_in=200)


def by_lstsq(x, order, intercept):
    columns = [x[order - lag : len(x) - lag] for lag in range(1, order + 1)]
    design = np.array(columns + [np.ones(len(x) - order)] * intercept).reshape(-1, len(x) - order).T
    found = np.linalg.lstsq(design, x[order:], rcond=None)[0]
    variance = np.mean((x[order:] - design @ found) ** 2)
    return found[:order], found[order] if intercept else 0.0, variance


def assert_fit(model, expected, rtol=1e-9):
    coeffs, intercept, variance = expected
    np.testing.assert_allclose(model.coeffs, coeffs, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(model.intercept, intercept, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(model.noise_variance, variance, rtol=rtol, atol=0)
