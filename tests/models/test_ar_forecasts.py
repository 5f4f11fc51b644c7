"""What ARModel says of a series: forecasts, simulations, orders, whiteness, spectrum; against scipy and statsmodels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.signal
import scipy.stats
import torch
from ar_series import AR3, by_lstsq, series

from aigc_fast.models import ARModel


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
        assert (covered - 0.8).abs().max() < 0.02

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
        x = model.simulate(2000, 5, state=state)
        whole = torch.cat([state.flip(0).expand(5, 3), x], 1)
        noise = model.residuals(whole)
        assert not torch.equal(x, model.simulate(2000, 5, state=state))
        assert 3.7 < noise.var() < 4.3
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
        for order in (0, 1, 4, 6):
            of_order = x[6 - order :] if method == "least-squares" else x
            fit = ARModel(order).fit(of_order, method)
            torch.testing.assert_close(criteria[order], getattr(fit, criterion))

    def test_criteria_are_the_likelihoods(self):
        x = series(200)
        model = ARModel(2).fit(x)
        scale = model.noise_variance.sqrt().item()
        likelihood = scipy.stats.norm.logpdf(model.residuals(x).numpy(), scale=scale).sum()
        assert model.aic.item() == pytest.approx(2 * 4 - 2 * likelihood, rel=1e-12)
        assert model.bic.item() == pytest.approx(4 * math.log(198) - 2 * likelihood, rel=1e-12)
        assert ARModel(2).fit(x, intercept=False).num_parameters == 3

    def test_finds_each_series_order(self, method):
        processes = (AR3, [0.7], [0, 0, 0, 0, 0.6], [])
        x = torch.stack([series(5000, coeffs=torch.tensor(coeffs).double()) for coeffs in processes])
        order, criteria = ARModel.select_order(x, 12, "bic", method)
        assert order.tolist() == [3, 1, 5, 0]
        assert criteria.shape == (4, 13)
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
        assert ARModel(3).fit(x).whiteness(x).p_value > 1e-3

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


AIRLINE = 100 * torch.exp(
    0.01 * torch.arange(144.0).double() + 0.2 * torch.sin(torch.arange(144.0).double() * math.pi / 6)
)
"""Passengers of twelve years: a trend and a season of twelve months that grows with it."""


class TestStatsmodels:
    """The library itself beside ours."""

    @pytest.fixture(params=["process", "airline"])
    def x(self, request):
        noisy = AIRLINE * (1 + 0.03 * torch.randn(144, dtype=torch.float64))
        return series(300) if request.param == "process" else noisy

    @pytest.mark.parametrize("intercept", [True, False])
    @pytest.mark.parametrize("order", [1, 4, 13])
    def test_yule_walker(self, x, order, intercept):
        peer = pytest.importorskip("statsmodels.regression.linear_model").yule_walker
        rho, sigma, _ = peer(x.numpy(), order, method="mle", demean=intercept, inv=True)
        model = ARModel(order).fit(x, "yule-walker", intercept)
        np.testing.assert_allclose(model.coeffs, rho, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(model.noise_deviation, sigma, rtol=1e-7)

    @pytest.mark.parametrize("intercept", [True, False])
    @pytest.mark.parametrize("order", [1, 4, 13])
    def test_burg(self, x, order, intercept):
        """The coefficients are equal; the variance is said of the same partial autocorrelations in another way."""
        peer = pytest.importorskip("statsmodels.regression.linear_model").burg
        pacf_burg = pytest.importorskip("statsmodels.tsa.stattools").pacf_burg
        rho, theirs = peer(x.numpy(), order, demean=intercept)
        model = ARModel(order).fit(x, "burg", intercept)
        np.testing.assert_allclose(model.coeffs, rho, rtol=1e-7, atol=1e-9)
        reflection = pacf_burg(x.numpy(), order, demean=intercept)[0][1:]
        values = x.numpy() - (x.numpy().mean() if intercept else 0)
        levinson = np.mean(values**2) * np.prod(1 - reflection**2)
        np.testing.assert_allclose(model.noise_variance, levinson, rtol=1e-9)
        assert burg_errors(values, rho) == pytest.approx(theirs, rel=1e-7)

    @pytest.mark.parametrize(("order", "intercept"), [(0, True), (1, True), (4, False), (13, True), (13, False)])
    def test_least_squares_criteria_and_forecasts(self, x, order, intercept):
        ar_model = pytest.importorskip("statsmodels.tsa.ar_model")
        theirs = ar_model.AutoReg(x.numpy(), order, trend="c" if intercept else "n").fit()
        model = ARModel(order).fit(x, intercept=intercept)
        found = np.append(model.intercept, model.coeffs) if intercept else model.coeffs
        np.testing.assert_allclose(found, theirs.params, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(model.noise_variance, theirs.sigma2, rtol=1e-9)
        assert (model.aic.item(), model.bic.item()) == pytest.approx((theirs.aic, theirs.bic), rel=1e-10)
        if order:
            predicted = theirs.get_prediction(len(x), len(x) + 7)
            mean, lower, upper = model.forecast(x, 8, level=0.9)
            np.testing.assert_allclose(mean, predicted.predicted_mean, rtol=1e-7)
            np.testing.assert_allclose(np.stack([lower, upper], 1), predicted.conf_int(alpha=0.1), rtol=1e-7)

    @pytest.mark.parametrize("criterion", ["aic", "bic"])
    def test_order(self, x, criterion):
        """The same samples at every order; ours counts the noise's variance among the parameters at each."""
        ar_model = pytest.importorskip("statsmodels.tsa.ar_model")
        theirs = ar_model.ar_select_order(x.numpy(), 13, ic=criterion)
        order, criteria = ARModel.select_order(x, 13, criterion)
        wanted = [getattr(theirs, criterion)[tuple(range(1, p + 1)) or 0] for p in range(14)]
        assert order.item() == len(theirs.ar_lags or ())
        np.testing.assert_allclose(criteria - criteria[0], np.array(wanted) - wanted[0], rtol=1e-9, atol=1e-6)

    @pytest.mark.parametrize("lags", [4, 9, 20])
    def test_whiteness(self, x, lags):
        acorr_ljungbox = pytest.importorskip("statsmodels.stats.diagnostic").acorr_ljungbox
        model = ARModel(3).fit(x)
        residuals = model.residuals(x)
        theirs = acorr_ljungbox(residuals.numpy(), [lags], model_df=3).iloc[0]
        found = model.whiteness(x, lags)
        np.testing.assert_allclose(found, [theirs["lb_stat"], theirs["lb_pvalue"]], rtol=1e-8, atol=1e-12)

    def test_simulation(self):
        process = pytest.importorskip("statsmodels.tsa.arima_process")
        model = ARModel(coeffs=AR3, intercept=1.5, noise_variance=4.0, dtype=torch.float64)
        x = model.simulate(200, burn_in=50)
        noise, mean = model.residuals(x), 1.5 / (1 - sum(AR3))
        wanted = process.arma_generate_sample([1, *(-c for c in AR3)], [1], 197, distrvs=lambda size: noise.numpy())
        # Theirs begins at 0; what ours had before is the filter's own response.
        zi = _scipy_state(x[:3].flip(0) - mean, 1)
        rest = scipy.signal.lfilter([1], [1, *(-c for c in AR3)], np.zeros((1, 197)), zi=zi)[0][0]
        np.testing.assert_allclose(x[3:] - mean, wanted + rest, rtol=1e-9, atol=1e-9)


def burg_errors(x, coeffs):
    """The mean square of the forward and the backward prediction errors within the series."""
    windows = np.lib.stride_tricks.sliding_window_view(x, len(coeffs) + 1)
    forward = windows[:, ::-1] @ np.concatenate([[1], -coeffs])
    backward = windows @ np.concatenate([[1], -coeffs])
    return np.mean(np.concatenate([forward, backward]) ** 2)
