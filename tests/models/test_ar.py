"""ARModel against numpy, scipy and loops, on simulated series and on bad ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.signal
import scipy.stats
import torch

from aigc_fast.models import ARModel

METHODS = ("least-squares", "yule-walker", "burg")
AR3 = (0.6, -0.4, 0.25)


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


def series(length=400, coeffs=AR3, intercept=1.5, paths=None, dtype=torch.float64):
    process = ARModel(coeffs=coeffs, intercept=intercept, noise_variance=0.5, dtype=dtype)
    return process.simulate(length, paths, burn_in=200)


def by_lstsq(x, order, intercept):
    columns = [x[order - lag : len(x) - lag] for lag in range(1, order + 1)]
    design = np.stack(columns + [np.ones(len(x) - order)] * intercept, 1)
    found = np.linalg.lstsq(design, x[order:], rcond=None)[0]
    variance = np.mean((x[order:] - design @ found) ** 2)
    return found[:order], found[order] if intercept else 0.0, variance


def by_solve_toeplitz(x, order, intercept):
    mean = x.mean() if intercept else 0.0
    centred = x - mean
    r = np.array([centred[lag:] @ centred[: len(x) - lag] for lag in range(order + 1)]) / len(x)
    found = scipy.linalg.solve_toeplitz(r[:-1], r[1:])
    return found, mean * (1 - found.sum()), r[0] - found @ r[1:]


def by_burgs_loop(x, order, intercept):
    mean = x.mean() if intercept else 0.0
    forward = backward = x - mean
    variance, found = np.mean(forward**2), np.zeros(0)
    for _ in range(order):
        f, b = forward[1:], backward[:-1]
        k = 2 * (f @ b) / (f @ f + b @ b)
        forward, backward = f - k * b, b - k * f
        found = np.append(found - k * found[::-1], k)
        variance *= 1 - k * k
    return found, mean * (1 - found.sum()), variance


EXPECTED = {"least-squares": by_lstsq, "yule-walker": by_solve_toeplitz, "burg": by_burgs_loop}


def assert_fit(model, expected, rtol=1e-9):
    coeffs, intercept, variance = expected
    np.testing.assert_allclose(model.coeffs, coeffs, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(model.intercept, intercept, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(model.noise_variance, variance, rtol=rtol, atol=0)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3, 16])
@pytest.mark.parametrize("length", [36, 1023])
def test_fit_is_the_textbooks(method, order, length, intercept):
    x = series(length)
    model = ARModel(order).fit(x, method, intercept)
    assert_fit(model, EXPECTED[method](x.numpy(), order, intercept))


def test_fit_of_a_long_series_on_all_threads(method):
    x = series(30_000)
    assert_fit(ARModel(8).fit(x, method), EXPECTED[method](x.numpy(), 8, True))


def test_fit_far_from_zero(method):
    x = series(500) + 1e6
    assert_fit(ARModel(3).fit(x, method), EXPECTED[method](x.numpy() - 1e6, 3, True)[:1] + _far(method, x), 1e-8)


def _far(method, x):
    coeffs, _, variance = EXPECTED[method](x.numpy() - x.numpy().mean(), 3, True)
    _, offset, _ = EXPECTED[method](x.numpy() - 1e6, 3, True)
    return offset + 1e6 * (1 - coeffs.sum()), variance


# The normal equations square the condition number; the two others must not.
NEARLY_PREDICTABLE = {"least-squares": 2e-4, "yule-walker": 1e-9, "burg": 1e-7}


@pytest.mark.parametrize("order", [2, 12])
def test_fit_of_a_nearly_predictable_series(method, order):
    """Two tones, the noise 120 dB below them."""
    t = torch.arange(3000, dtype=torch.float64)
    x = torch.sin(0.3 * t) + 0.5 * torch.sin(1.1 * t + 1) + 1e-6 * torch.randn(3000, dtype=torch.float64)
    model = ARModel(order).fit(x, method, intercept=False)
    assert_fit(model, EXPECTED[method](x.numpy(), order, False), NEARLY_PREDICTABLE[method])


def test_burg_and_yule_walker_take_series_without_noise():
    t = torch.arange(2000, dtype=torch.float64)
    x = torch.stack([torch.sin(0.3 * t), torch.cos(0.01 * t) + torch.sin(2 * t), t, t.square()])
    assert ARModel(10).fit(x, "burg").coeffs.isfinite().all()
    assert ARModel(10).fit(x, "yule-walker").is_stable.all()
    assert ARModel(2).fit(x, "burg").is_stable.all()
    tone = ARModel(2).fit(x[0], "burg", intercept=False)
    torch.testing.assert_close(tone.coeffs, torch.tensor([2 * math.cos(0.3), -1.0]).double(), rtol=1e-3, atol=0)


def test_a_series_without_noise_is_fitted_exactly():
    x = 2.0 ** torch.arange(12, dtype=torch.float64)
    model = ARModel(1).fit(x, intercept=False)
    torch.testing.assert_close(model.coeffs, torch.tensor([2.0]).double())
    assert not model.is_stable


def test_fit_in_float32_accumulates_in_float64(method):
    x = series(5000, dtype=torch.float32) + 1000
    model = ARModel(4).fit(x, method)
    assert {model.coeffs.dtype, model.intercept.dtype, model.noise_variance.dtype} == {torch.float32}
    exact = ARModel(4).fit(x.double(), method)
    torch.testing.assert_close(model.coeffs, exact.coeffs.float(), rtol=1e-6, atol=1e-7)


def test_fit_finds_the_coefficients_of_the_process(method):
    model = ARModel(3).fit(series(4000, paths=50), method)
    np.testing.assert_allclose(model.coeffs.mean(0), AR3, atol=0.01)
    np.testing.assert_allclose(model.intercept.mean(), 1.5, atol=0.03)
    np.testing.assert_allclose(model.noise_variance.mean(), 0.5, atol=0.01)


def test_a_batch_is_its_series_one_by_one(method):
    x = torch.stack([series(300), 50 * series(300, coeffs=[-0.7]), series(300, coeffs=[0.2, 0.5]) - 30])
    for given in (x, x.t().contiguous().t(), torch.cat([x, x], 1)[:, :300]):
        model = ARModel(5).fit(given, method)
        singles = [ARModel(5).fit(row, method) for row in x]
        for name in ("coeffs", "intercept", "noise_variance", "aic", "bic"):
            wanted = torch.stack([getattr(single, name) for single in singles])
            torch.testing.assert_close(getattr(model, name), wanted, rtol=1e-9, atol=1e-9)
    forecasts = [single.forecast(row, 7) for single, row in zip(singles, x, strict=True)]
    torch.testing.assert_close(
        model.forecast(x, 7), tuple(torch.stack(parts) for parts in zip(*forecasts, strict=True))
    )
    tests = [single.whiteness(row) for single, row in zip(singles, x, strict=True)]
    torch.testing.assert_close(model.whiteness(x), tuple(torch.stack(parts) for parts in zip(*tests, strict=True)))
    torch.testing.assert_close(model.spectrum(9)[1], torch.stack([single.spectrum(9)[1] for single in singles]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_stock_price_example(dtype):
    model = ARModel(coeffs=[0.5, 0.3], intercept=30.0, dtype=dtype)
    mean, _, _ = model.forecast(torch.tensor([100.0, 110.0], dtype=dtype), steps=1)
    assert mean.dtype == dtype
    assert mean.item() == pytest.approx(115, rel=1e-6)


class TestForecast:
    def test_mean_is_the_recursion_by_hand(self):
        x = series(50)
        model = ARModel(3).fit(x)
        values = x.tolist()
        for _ in range(9):
            lagged = zip(model.coeffs.tolist(), values[:-4:-1], strict=True)
            values.append(model.intercept.item() + sum(c * value for c, value in lagged))
        np.testing.assert_allclose(model.forecast(x, 9).mean, values[50:], rtol=1e-12)

    @pytest.mark.parametrize("level", [0.5, 0.95])
    def test_interval_of_the_first_order_is_the_closed_form(self, level):
        model = ARModel(coeffs=[0.8], noise_variance=4.0, dtype=torch.float64)
        mean, lower, upper = model.forecast(torch.ones(1, dtype=torch.float64), 6, level)
        deviation = 2 * np.sqrt((1 - 0.64 ** np.arange(1, 7)) / (1 - 0.64))
        np.testing.assert_allclose(upper - mean, scipy.stats.norm.ppf((1 + level) / 2) * deviation)
        np.testing.assert_allclose(mean - lower, upper - mean)

    def test_intervals_cover_what_comes(self):
        model = ARModel(coeffs=AR3, intercept=1.5, noise_variance=0.5, dtype=torch.float64)
        paths = model.simulate(60, 20_000)
        _, lower, upper = model.forecast(paths[:, :50], 10, level=0.8)
        covered = ((paths[:, 50:] > lower) & (paths[:, 50:] < upper)).double().mean(0)
        assert (covered - 0.8).abs().max() < 0.012

    def test_one_model_of_many_series(self):
        model = ARModel(coeffs=AR3, intercept=1.5, dtype=torch.float64)
        x = series(20, paths=4)
        torch.testing.assert_close(model.forecast(x, 5).upper[2], model.forecast(x[2], 5).upper)

    def test_gradients(self):
        model = ARModel(coeffs=AR3, intercept=1.5, dtype=torch.float64)
        x = series(6).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: model.forecast(x, 4).mean, x)
        assert torch.autograd.gradcheck(model.residuals, x)


class TestSimulate:
    def test_noise_through_the_filter(self):
        model = ARModel(coeffs=AR3, intercept=1.5, noise_variance=4.0, dtype=torch.float64)
        state = torch.tensor([3.0, 2.0, 1.0]).double()
        x = model.simulate(30, 5, state=state)
        whole = torch.cat([state.flip(0).expand(5, 3), x], 1)
        noise = model.residuals(whole)
        wanted = model.simulate(30, 5, state=state * 0)
        assert not torch.equal(x, wanted)
        assert 3 < noise.var() < 5
        np.testing.assert_allclose(
            x, scipy.signal.lfilter([1], [1, *(-c for c in AR3)], noise + 1.5, zi=_scipy_state(state, 5))[0]
        )

    def test_begins_at_the_mean_and_burns_in(self):
        model = ARModel(coeffs=[0.9], intercept=10.0, noise_variance=0.19, dtype=torch.float64)
        first = model.simulate(1, 20_000)
        assert first.mean() == pytest.approx(100, abs=0.02)
        assert first.var() == pytest.approx(0.19, rel=0.05)
        assert model.simulate(1, 20_000, burn_in=100).var() == pytest.approx(1.0, rel=0.05)

    def test_begins_at_zero_where_there_is_no_mean(self):
        walk = ARModel(coeffs=[1.0], intercept=2.0, noise_variance=0.0, dtype=torch.float64)
        assert walk.simulate(3).tolist() == [2, 4, 6]

    def test_shapes_and_generator(self):
        one, three = ARModel(coeffs=AR3), ARModel(coeffs=[[0.1], [0.2], [0.3]], intercept=torch.arange(3.0))
        assert one.simulate(7).shape == (7,)
        assert one.simulate(0, 4).shape == (4, 0)
        assert three.simulate(7).shape == (3, 7)
        first, second, other = (three.simulate(7, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
        assert torch.equal(first, second)
        assert not torch.equal(first, other)


def _scipy_state(state, paths):
    zi = scipy.signal.lfiltic([1], [1, *(-c for c in AR3)], state.numpy())
    return np.broadcast_to(zi, (paths, 3))


class TestOrder:
    @pytest.mark.parametrize("criterion", ["aic", "bic"])
    def test_criteria_are_those_of_fits_to_the_same_samples(self, criterion, method):
        x = series(200)
        _, criteria = ARModel.select_order(x, 6, criterion, method)
        for order in (1, 4, 6):
            of_order = x[6 - order :] if method == "least-squares" else x
            fit = ARModel(order).fit(of_order, method)
            torch.testing.assert_close(criteria[order - 1], getattr(fit, criterion))

    def test_criteria_are_the_likelihoods(self):
        x = series(200)
        model = ARModel(2).fit(x)
        scale = model.noise_variance.sqrt().item()
        likelihood = scipy.stats.norm.logpdf(model.residuals(x).numpy(), scale=scale).sum()
        assert model.aic.item() == pytest.approx(2 * 4 - 2 * likelihood)
        assert model.bic.item() == pytest.approx(4 * math.log(198) - 2 * likelihood)
        assert ARModel(2).fit(x, intercept=False).num_parameters == 3

    def test_finds_each_series_order(self, method):
        x = torch.stack([series(5000), series(5000, coeffs=[0.7]), series(5000, coeffs=[0, 0, 0, 0, 0.6])])
        order, criteria = ARModel.select_order(x, 12, "bic", method)
        assert order.tolist() == [3, 1, 5]
        assert criteria.shape == (3, 12)
        single = ARModel.select_order(x[0], 12, "bic", method)
        assert ARModel(single.order).order == 3


class TestWhiteness:
    def test_statistic_and_p_value(self):
        x = series(200)
        model = ARModel(3).fit(x)
        residuals = model.residuals(x).numpy()
        residuals = residuals - residuals.mean()
        n = len(residuals)
        r = np.array([residuals[k:] @ residuals[: n - k] for k in range(1, 9)]) / (residuals @ residuals)
        statistic = n * (n + 2) * (r**2 / (n - np.arange(1, 9))).sum()
        found = model.whiteness(x, lags=8)
        assert found.statistic.item() == pytest.approx(statistic)
        assert found.p_value.item() == pytest.approx(scipy.stats.chi2.sf(statistic, 8 - 3))

    def test_rejects_the_wrong_order_alone(self):
        x = series(2000)
        assert ARModel(1).fit(x).whiteness(x).p_value < 1e-6
        assert ARModel(3).fit(x).whiteness(x).p_value > 0.05

    def test_p_values_of_the_right_order_are_uniform(self):
        x = series(600, paths=2000)
        p = ARModel(3).fit(x).whiteness(x, 20).p_value
        assert scipy.stats.kstest(p.numpy(), "uniform").pvalue > 0.001
        assert 0.03 < (p < 0.05).double().mean() < 0.075


def test_residuals_are_what_the_regression_leaves():
    x = series(100)
    model = ARModel(3).fit(x)
    coeffs, intercept, _ = by_lstsq(x.numpy(), 3, True)
    values = x.numpy()
    wanted = [values[t] - intercept - coeffs @ values[t - 3 : t][::-1] for t in range(3, 100)]
    np.testing.assert_allclose(model.residuals(x), wanted, rtol=1e-9, atol=1e-9)


def test_spectrum_is_scipys_and_integrates_to_the_variance():
    model = ARModel(coeffs=AR3, noise_variance=0.5, dtype=torch.float64)
    frequencies, density = model.spectrum(1001)
    _, response = scipy.signal.freqz([1], [1, *(-c for c in AR3)], 2 * np.pi * frequencies.numpy())
    np.testing.assert_allclose(density, 0.5 * np.abs(response) ** 2)
    psi = scipy.signal.lfilter([1], [1, *(-c for c in AR3)], np.eye(1, 500)[0])
    assert 2 * torch.trapezoid(density, frequencies) == pytest.approx(0.5 * (psi**2).sum(), rel=1e-6)


@pytest.mark.parametrize(
    ("coeffs", "stable"), [([0.5, 0.3], True), ([0.5, 0.6], False), ([1.0], False), ([1.9, -0.95], True)]
)
def test_stability(coeffs, stable):
    assert ARModel(coeffs=coeffs).is_stable.item() is stable


def test_stability_of_each_series():
    assert ARModel(coeffs=[[0.9], [1.1]]).is_stable.tolist() == [True, False]


@pytest.mark.parametrize("make", [torch.tensor, lambda values: torch.nn.Parameter(torch.tensor(values)), np.array])
def test_the_caller_s_tensors_are_copied(make):
    given = {"coeffs": make([[0.5, 0.3]]), "intercept": make([1.0]), "noise_variance": make([2.0])}
    model = ARModel(**given)
    with torch.no_grad():
        model.coeffs.zero_(), model.intercept.zero_(), model.noise_variance.zero_()
        for name, value in given.items():
            assert (value != 0).all(), name
    for name in given:
        assert type(getattr(model, name)) is torch.Tensor
        assert not getattr(model, name).requires_grad


@pytest.mark.parametrize("paths", [None, 4])
def test_state_dict_round_trip(paths):
    x = series(200, paths=paths)
    model = ARModel(3).fit(x, "burg")
    twin = ARModel(3, dtype=torch.float64)
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(twin.forecast(x, 5), model.forecast(x, 5), rtol=0, atol=0)
    assert torch.equal(twin.bic, model.bic)
    assert twin.series == paths
    with pytest.raises(RuntimeError, match="coeffs"):
        ARModel(2).load_state_dict(model.state_dict())


def test_moving_the_model_moves_what_it_gives():
    x = series(100)
    model = ARModel(2).fit(x).float()
    assert model.forecast(x.float(), 3).lower.dtype == torch.float32
    assert model.simulate(4).dtype == torch.float32


def test_a_fitted_model_can_be_fitted_again():
    model = ARModel(2).fit(series(100, paths=3))
    assert model.fit(series(100)).series is None
    assert model.intercept.shape == ()


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
        ("order", lambda: ARModel(0)),
        ("order", lambda: ARModel()),
        ("order", lambda: ARModel(2, coeffs=[0.5])),
        ("coeffs", lambda: ARModel(coeffs=[])),
        ("coeffs", lambda: ARModel(coeffs=[1, 2])),
        ("coeffs", lambda: ARModel(coeffs=torch.zeros(2, 3, 4))),
        ("intercept", lambda: ARModel(coeffs=[[0.5], [0.3]], intercept=torch.zeros(3))),
        ("noise_variance", lambda: ARModel(coeffs=[0.5], noise_variance=-1.0)),
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


@pytest.mark.parametrize(("name", "call"), [("x", lambda: ARModel(2).fit([1.0, 2.0])), ("order", lambda: ARModel(2.5))])
def test_bad_types_name_the_argument(name, call):
    with pytest.raises(TypeError, match=f"^{name} is "):
        call()


def test_a_criterion_before_a_fit():
    with pytest.raises(RuntimeError, match=r"^aic: .*not fitted"):
        _ = MODEL.aic
