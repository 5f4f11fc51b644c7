"""What ARModel refuses, and how it says so."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ar_series import assert_fit, by_lstsq, series

from aigc_fast.models import ARModel

X = torch.sin(torch.arange(40.0)) + torch.cos(torch.arange(40.0).square())
BAD_SERIES = {
    "integers": (X.long(), "dtype"),
    "half": (X.half(), "dtype"),
    "three dimensions": (X[None, None], "shape"),
    "a scalar": (X[0], "shape"),
    "no series": (X[None][:0], "shape"),
    "short": (X[:3], "samples"),
    "NaN": (torch.where(X.eq(X[7]), math.nan, X), "finite"),
    "infinite": (torch.stack([X, torch.where(X.eq(X[7]), math.inf, X)]), "finite.*number 1"),
    "constant": (torch.full((40,), 0.1), "constant"),
    "constant far off": (torch.stack([X, X, torch.full((40,), 1e9)]), "constant.*number 2"),
}


@pytest.mark.parametrize(("x", "problem"), BAD_SERIES.values(), ids=BAD_SERIES)
def test_bad_series(x, problem, method):
    model = ARModel(3)
    with pytest.raises(ValueError, match=rf"^x (has|is) .*{problem}"):
        model.fit(x, method)
    with pytest.raises(ValueError, match=rf"^x (has|is) .*{problem}"):
        ARModel.select_order(x, 3, method=method)
    assert model.num_samples == 0


def test_least_squares_refuses_what_leaves_the_coefficients_undetermined():
    tone = torch.sin(0.3 * torch.arange(500, dtype=torch.float64))
    ARModel(2).fit(tone)
    with pytest.raises(ValueError, match=r"^x is predicted without error by less than 4 lags"):
        ARModel(4).fit(tone)
    with pytest.raises(ValueError, match=r"^x is constant"):
        ARModel(1).fit(torch.zeros(40), intercept=False)


@pytest.mark.parametrize(("intercept", "needed"), [(True, 8), (False, 7)])
def test_the_shortest_series(intercept, needed):
    x = series(needed)
    assert_fit(ARModel(3).fit(x, intercept=intercept), by_lstsq(x.numpy(), 3, intercept), 1e-6)
    with pytest.raises(ValueError, match=f"^x has {needed - 1} samples: expected at least {needed}"):
        ARModel(3).fit(x[1:], intercept=intercept)


MODEL, PAIR = ARModel(coeffs=[0.5, 0.3]), ARModel(coeffs=[[0.5], [0.3]])


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("order", lambda: ARModel(-1)),
        ("order", lambda: ARModel()),
        ("order", lambda: ARModel(2, coeffs=[0.5])),
        ("coeffs", lambda: ARModel(coeffs=[1, 2])),
        ("coeffs", lambda: ARModel(coeffs=torch.zeros(2, 3, 4))),
        ("intercept", lambda: ARModel(coeffs=[[0.5], [0.3]], intercept=torch.zeros(3))),
        ("noise_variance", lambda: ARModel(coeffs=[0.5], noise_variance=-1.0)),
        ("noise_variance", lambda: ARModel(coeffs=[0.5], noise_variance=math.nan)),
        ("method", lambda: ARModel(2).fit(X, method="ols")),
        ("method", lambda: ARModel.select_order(X, 2, method="ols")),
        ("criterion", lambda: ARModel.select_order(X, 2, criterion="hqic")),
        ("max_order", lambda: ARModel.select_order(X, 0)),
        ("steps", lambda: MODEL.forecast(X, 0)),
        ("level", lambda: MODEL.forecast(X, 2, level=95)),
        ("x", lambda: MODEL.forecast(X[:1], 2)),
        ("x", lambda: MODEL.forecast(X.double(), 2)),
        ("x", lambda: PAIR.forecast(X, 2)),
        ("x", lambda: PAIR.residuals(X.expand(3, 40))),
        ("x", lambda: MODEL.residuals(X[:2])),
        ("x", lambda: MODEL.whiteness(X[:12])),
        ("residuals of x", lambda: MODEL.whiteness(torch.zeros(40))),
        ("lags", lambda: MODEL.whiteness(X, lags=2)),
        ("steps", lambda: MODEL.simulate(-1)),
        ("paths", lambda: MODEL.simulate(3, 0)),
        ("paths", lambda: PAIR.simulate(3, 2)),
        ("burn_in", lambda: MODEL.simulate(3, burn_in=-1)),
        ("state", lambda: MODEL.simulate(3, 2, state=torch.zeros(3))),
        ("points", lambda: MODEL.spectrum(1)),
    ],
)
def test_bad_arguments_name_the_argument(name, call):
    with pytest.raises(ValueError, match=rf"^{name}( |=)"):
        call()


NO_NUMBERS = {
    "text": "1, 2, 3",
    "nothing": None,
    "complex numbers": np.ones(40) * 1j,
    "truth values": np.ones(40, bool),
    "objects": np.array([1.0, None] * 20),
    "dates": np.arange(40).astype("datetime64[D]"),
}


@pytest.mark.parametrize("x", NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_what_holds_no_numbers_is_named(x):
    for call in (ARModel(2).fit, lambda x: ARModel.select_order(x, 2), lambda x: MODEL.forecast(x, 2), MODEL.residuals):
        with pytest.raises(TypeError, match=rf"^x is {type(x).__name__} of .*: expected"):
            call(x)


def test_bad_types_name_the_argument():
    with pytest.raises(TypeError, match=r"^order is float: expected"):
        ARModel(2.5)
    with pytest.raises(ValueError, match=r"^x has rows that make no array"):
        ARModel(2).fit([[1.0, 2.0], [3.0]])
    with pytest.raises(ValueError, match=r"^x has masked values"):
        ARModel(2).fit(np.ma.masked_greater(X.numpy(), 1))


UNFITTED = {
    "forecast": lambda model: model.forecast(X, 2),
    "residuals": lambda model: model.residuals(X),
    "whiteness": lambda model: model.whiteness(X),
    "simulate": lambda model: model.simulate(3),
    "spectrum": lambda model: model.spectrum(),
    "is_stable": lambda model: model.is_stable,
    "aic": lambda model: model.aic,
    "bic": lambda model: model.bic,
}


@pytest.mark.parametrize("order", [0, 2])
@pytest.mark.parametrize("name", UNFITTED)
def test_what_needs_a_fit_says_so(name, order):
    model = ARModel(order)
    with pytest.raises(RuntimeError, match=rf"^{name}: the model was not fitted"):
        UNFITTED[name](model)
    again = ARModel(order)
    again.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match=rf"^{name}: the model was not fitted"):
        UNFITTED[name](again)
    UNFITTED[name](model.fit(X))


def test_a_criterion_before_a_fit():
    with pytest.raises(RuntimeError, match=r"^aic: .*not fitted"):
        _ = MODEL.aic
