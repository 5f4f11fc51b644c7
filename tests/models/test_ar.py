"""ARModel against numpy, scipy, statsmodels and loops, on simulated series and on bad ones."""

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
    design = np.array(columns + [np.ones(len(x) - order)] * intercept).reshape(-1, len(x) - order).T
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
@pytest.mark.parametrize("order", [0, 1, 2, 3, 16])
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


@pytest.mark.parametrize("scale", [1e-307, 1e-200, 3e-20, 1e20, 1e200, 1e305])
def test_the_unit_of_a_series_is_its_own(scale, method):
    """Whatever the values' size, beside a series of ordinary size; their squares leave float64's range."""
    x = torch.stack([series(300), series(300, coeffs=[0.5])])
    given = x * torch.tensor([[1.0], [scale]], dtype=torch.float64)
    one, other = ARModel(3).fit(x, method), ARModel(3).fit(given, method)
    torch.testing.assert_close(other.coeffs, one.coeffs, rtol=1e-9, atol=1e-9)
    assert_same_but_for_the_unit(other.intercept, one.intercept, scale)
    assert_same_but_for_the_unit(other.noise_deviation, one.noise_deviation, scale)
    for found, wanted in zip(other.forecast(given, 4), one.forecast(x, 4), strict=True):
        assert_same_but_for_the_unit(found, wanted, scale)
    torch.testing.assert_close(other.whiteness(given), one.whiteness(x), rtol=1e-6, atol=1e-9)
    for criterion in ("aic", "bic"):
        found, wanted = getattr(other, criterion), getattr(one, criterion)
        expected = wanted[1] + 2 * int(one.num_samples) * math.log(scale)
        torch.testing.assert_close(found, torch.stack([wanted[0], expected]), rtol=1e-9, atol=1e-6)
        order = ARModel.select_order(given, 8, criterion, method).order
        assert torch.equal(order, ARModel.select_order(x, 8, criterion, method).order)
    drawn = (model.simulate(50, generator=torch.Generator().manual_seed(3)) for model in (other, one))
    assert_same_but_for_the_unit(*drawn, scale)


def assert_same_but_for_the_unit(found, wanted, scale):
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found[1] / scale, wanted[1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_float32_series_whose_squares_leave_its_range(scale, method):
    x = series(300, dtype=torch.float32)
    one, other = ARModel(3).fit(x, method), ARModel(3).fit(x * scale, method)
    torch.testing.assert_close(other.coeffs, one.coeffs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.noise_deviation / scale, one.noise_deviation, rtol=1e-4, atol=0)
    torch.testing.assert_close(
        other.forecast(x * scale, 4).lower / scale, one.forecast(x, 4).lower, rtol=1e-4, atol=1e-5
    )


def test_the_variance_is_the_deviations_square_and_can_be_assigned():
    model = ARModel(coeffs=[[0.5], [0.3]], noise_variance=[4.0, 9.0])
    assert model.noise_deviation.tolist() == [2, 3]
    model.noise_variance = 16.0
    assert model.noise_deviation.tolist() == [4, 4]
    assert model.noise_variance.tolist() == [16, 16]
    with pytest.raises(ValueError, match=r"^noise_variance=\[-1.0, -1.0\]"):
        model.noise_variance = -1.0


def test_a_state_dict_that_holds_the_variance():
    model = ARModel(2).fit(series(200))
    saved = model.state_dict()
    saved["noise_variance"] = saved.pop("noise_deviation").square()
    twin = ARModel(2, dtype=torch.float64)
    twin.load_state_dict(saved)
    torch.testing.assert_close(twin.noise_deviation, model.noise_deviation)


class TestArrays:
    """What is no tensor: NumPy's arrays, lists, pandas."""

    @pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int64, np.uint8, ">f8"])
    @pytest.mark.parametrize("rows", [None, 3])
    def test_an_array_is_its_tensor(self, method, rows, dtype):
        x = (20 * series(200, paths=rows)).numpy().astype(np.uint8).astype(dtype)
        tensor = torch.from_numpy(x.astype(np.float32 if dtype == np.float32 else np.float64))
        model, expected = ARModel(2).fit(x, method), ARModel(2).fit(tensor, method)
        assert model.coeffs.dtype == tensor.dtype
        for name in ("coeffs", "intercept", "noise_deviation", "aic"):
            assert torch.equal(getattr(model, name), getattr(expected, name)), name
        torch.testing.assert_close(model.forecast(x, 5), expected.forecast(tensor, 5), rtol=0, atol=0)
        torch.testing.assert_close(model.residuals(x), expected.residuals(tensor), rtol=0, atol=0)
        torch.testing.assert_close(model.whiteness(x), expected.whiteness(tensor), rtol=0, atol=0)
        selected = ARModel.select_order(x, 4, method=method)
        torch.testing.assert_close(selected, ARModel.select_order(tensor, 4, method=method), rtol=0, atol=0)

    def test_views_are_read_and_never_written(self):
        whole = series(400).numpy()
        whole.flags.writeable = False
        for view in (whole[::2], whole[::-1], np.stack([whole, whole], 1).T):
            expected = ARModel(2).fit(torch.from_numpy(view.copy()))
            assert torch.equal(ARModel(2).fit(view).coeffs, expected.coeffs)

    def test_lists_and_the_model_s_dtype(self):
        model = ARModel(coeffs=[0.5, 0.3], intercept=30.0)
        assert model.forecast([100, 110], steps=1).mean.item() == pytest.approx(115)
        assert model.forecast([[100, 110]], 1).mean.shape == (1, 1)
        assert model.forecast(np.array([100.0, 110.0]), 1).mean.dtype == torch.float32
        values = series(100).tolist()
        assert torch.equal(
            ARModel(2).fit(values).coeffs, ARModel(2).fit(torch.tensor(values, dtype=torch.float64)).coeffs
        )

    def test_models_are_made_of_arrays(self):
        model = ARModel(coeffs=np.array([0.5, 0.3]), intercept=np.array(2.0), noise_variance=np.float64(4))
        assert model.coeffs.dtype == torch.float64
        assert (model.intercept, model.noise_deviation) == (2, 2)
        quiet = ARModel(coeffs=np.array([0.5, 0.3]), noise_variance=0.0)
        assert quiet.simulate(1, state=np.array([10.0, 20.0])).item() == pytest.approx(11)

    def test_pandas(self, method):
        pandas = pytest.importorskip("pandas")
        x = series(200, paths=2)
        frame = pandas.DataFrame(x.numpy().T, columns=["open", "close"], index=pandas.date_range("2020", periods=200))
        one, both = ARModel(2).fit(x[1], method), ARModel(2).fit(x, method)
        of_column, of_frame = ARModel(2).fit(frame["close"], method), ARModel(2).fit(frame, method)
        assert torch.equal(of_column.coeffs, one.coeffs)
        assert torch.equal(of_frame.coeffs, both.coeffs)
        assert torch.equal(of_column.forecast(frame["close"], 3).upper, one.forecast(x[1], 3).upper)
        assert torch.equal(of_frame.forecast(frame, 3).upper, both.forecast(x, 3).upper)
        assert ARModel(2).fit(frame[["close"]], method).coeffs.shape == (1, 2)
        whole = frame["close"].mul(100).round().astype("Int64")
        assert torch.equal(ARModel(2).fit(whole, method).coeffs, ARModel(2).fit(whole.to_numpy(float), method).coeffs)
        with pytest.raises(ValueError, match=r"^x has values that are not finite"):
            ARModel(2).fit(frame["close"].where(frame.index != frame.index[7]), method)


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
