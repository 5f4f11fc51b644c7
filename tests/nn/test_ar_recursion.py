"""nn.ARRecursion: what it computes, what it learns, and that a stable one stays so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import stable_coeffs
from parity import DTYPES

import aigc_fast.functional as AF
from aigc_fast.nn import ARRecursion
from aigc_fast.ops.recursion.reflection import coeffs_of_reflection, reflection_of_coeffs


@pytest.mark.parametrize("series", [None, 3])
@pytest.mark.parametrize("stable", [False, True])
def test_computes_the_recursion(series: int | None, stable: bool) -> None:
    layer = ARRecursion(4, series, stable=stable, dtype=torch.float64)
    x = torch.randn(3, 50, dtype=torch.float64)
    assert torch.equal(layer(x), x)
    wanted = stable_coeffs(torch.randn(*(() if series is None else (series,)), 4, dtype=torch.float64))
    layer.set_coeffs(wanted)
    torch.testing.assert_close(layer.coeffs, wanted)
    y, state = layer(x, return_state=True)
    torch.testing.assert_close(y, AF.ar_recursion(x, wanted))
    torch.testing.assert_close(layer(x, state), AF.ar_recursion(x, wanted, state))
    assert list(layer.state_dict()) == ["raw_reflection" if stable else "raw_coeffs"]


def test_complex_coefficients() -> None:
    layer = ARRecursion(2, dtype=torch.complex64)
    wanted, x = torch.tensor([0.3 + 0.4j, -0.2j]), torch.randn(3, 20, dtype=torch.complex64)
    layer.set_coeffs(wanted)
    torch.testing.assert_close(layer(x), AF.ar_recursion(x, wanted))


def test_any_parameters_of_a_stable_layer_give_a_stable_filter() -> None:
    layer = ARRecursion(9, 20, stable=True, dtype=torch.float64)
    with torch.no_grad():
        layer.raw_reflection.normal_(std=1.5)
    for coeffs in layer.coeffs.detach().numpy():
        assert np.abs(np.roots(np.concatenate([[1.0], -coeffs]))).max() < 1


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_reflection_coefficients_never_reach_1(dtype: torch.dtype) -> None:
    layer = ARRecursion(1, 4, stable=True, dtype=dtype)
    with torch.no_grad():
        layer.raw_reflection.copy_(torch.tensor([[50.0], [-50.0], [4.0], [torch.inf]]))
    assert bool((layer.coeffs.abs() < 1).all())


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_coefficients_come_back_to_rounding(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    layer = ARRecursion(1, 5, stable=True, dtype=dtype)
    wanted = torch.tensor([[0.0], [0.3], [-0.9], [1 - eps], [eps / 2 - 1]], dtype=dtype)
    layer.set_coeffs(wanted)
    assert bool(layer.raw_reflection.isfinite().all())
    torch.testing.assert_close(layer.coeffs, wanted, rtol=2 * eps, atol=0)


def test_coefficients_that_rounding_makes_unstable() -> None:
    nearly = torch.tensor([1 - 1e-9], dtype=torch.float64)
    ARRecursion(1, stable=True, dtype=torch.float64).set_coeffs(nearly)
    with pytest.raises(ValueError, match=r"expected those of a recursion that is stable in torch\.float32"):
        ARRecursion(1, stable=True).set_coeffs(nearly)


@pytest.mark.parametrize("stable", [False, True])
def test_under_autocast(stable: bool) -> None:
    layer, before = ARRecursion(2, stable=stable), torch.nn.Linear(8, 8)
    layer.set_coeffs(torch.tensor([0.5, -0.2]))
    with torch.autocast("cpu", torch.bfloat16):
        x = before(torch.randn(2, 8))
        y, state = layer(x, return_state=True)
        again = layer(x, state.bfloat16())
    assert x.dtype == torch.bfloat16
    assert y.dtype == again.dtype == torch.float32
    torch.testing.assert_close(y, layer(x.float()))


def test_learns_a_filter() -> None:
    wanted = torch.tensor([1.2, -0.5])
    x = torch.randn(4, 400)
    target, layer = AF.ar_recursion(x, wanted), ARRecursion(2, stable=True)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = (layer(x) - target).square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    torch.testing.assert_close(layer.coeffs.detach(), wanted, rtol=1e-3, atol=1e-3)


def test_reflection_is_inverted() -> None:
    reflection = torch.rand(5, 7, dtype=torch.float64) * 1.8 - 0.9
    torch.testing.assert_close(reflection_of_coeffs(coeffs_of_reflection(reflection)), reflection)
    # y[t] = 1.2 y[t - 1] - 0.5 y[t - 2]: the first autocorrelation is 1.2 / 1.5, the last coefficient the second one.
    found = reflection_of_coeffs(torch.tensor([1.2, -0.5], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([0.8, -0.5], dtype=torch.float64))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="order=-1"):
        ARRecursion(-1)
    with pytest.raises(ValueError, match=r"dtype=torch\.complex64: expected a floating-point type"):
        ARRecursion(1, stable=True, dtype=torch.complex64)
    with pytest.raises(ValueError, match=r"coeffs=\[1.5\]: expected those of a recursion that is stable"):
        ARRecursion(1, stable=True).set_coeffs(torch.tensor([1.5]))


@pytest.mark.parametrize("stable", [False, True])
def test_what_does_not_fit_is_named(stable: bool) -> None:
    for options, error in (({"order": 2.5}, TypeError), ({"order": 2, "series": "a"}, TypeError)):
        with pytest.raises(error, match=r"(order|series) is \w+: expected an integer"):
            ARRecursion(**options, stable=stable)
    for options in ({"order": -1}, {"order": 2, "series": 0}):
        with pytest.raises(ValueError, match=r"(order|series)=-?\d: expected at least"):
            ARRecursion(**options, stable=stable)
    recursion = ARRecursion(2, 3, stable=stable)
    with pytest.raises(ValueError, match=r"coeffs has shape \(4,\): expected \(3, 2\)"):
        recursion.set_coeffs(torch.zeros(4))
    with pytest.raises(TypeError, match="coeffs is list: expected a Tensor"):
        recursion.set_coeffs([0.1, 0.2])
    recursion.set_coeffs(torch.tensor([0.5, -0.2]))
    torch.testing.assert_close(recursion.coeffs, torch.tensor([0.5, -0.2]).expand(3, 2))
