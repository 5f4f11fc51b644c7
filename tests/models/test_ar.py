"""ARModel's fits against numpy, scipy and loops, in every unit, dtype and kind of array."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.signal
import scipy.stats
import torch
from ar_series import AR3, assert_fit, by_lstsq, series

from aigc_fast.models import ARModel


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
