"""The CUDA kernels of recursions, as the CPU emulates them, where series are cut into parts."""

from __future__ import annotations

import pytest
import torch
from cases import stable_coeffs
from memory import far_apart
from parity import relative_error
from places import EMULATOR, Place
from torch import Tensor

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.ops.recursion import reference
from aigc_fast.ops.recursion.operators import RECURSION, RECURSION_TRANSPOSED
from aigc_fast.runtime import native

pytestmark = pytest.mark.skipif(
    not native.is_emulated or native.cuda is None, reason="AIGC_FAST_CUDA_HOST=1 is not set"
)
IN_ORDERS = pytest.mark.parametrize("place", EMULATOR, ids=str)


def coeffs(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return stable_coeffs(torch.randn(*shape, dtype=torch.float64)).to(dtype)


def assert_same(found: Tensor, expected: Tensor) -> None:
    """The same values where they are finite, and infinity and NaN in the same places."""
    finite = expected.isfinite()
    assert torch.equal(finite, found.isfinite())
    assert torch.equal(expected.isnan(), found.isnan())
    assert torch.equal(expected[expected.isinf()], found[expected.isinf()])
    assert relative_error(found[finite], expected[finite]) < 1e-4


@IN_ORDERS
def test_emulated_unstable_filters_overflow_step_by_step(place: Place) -> None:
    x, c = torch.zeros(2, 3000), torch.tensor([[1.5], [-1.5]])
    x[:, 0] = 1
    expected = reference.recursion(x, c, None)
    assert expected.isinf().any()
    with place.in_force():
        assert_same(AF.ar_recursion(x, c), expected)


@IN_ORDERS
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("varying", [False, True])
def test_emulated_what_is_not_finite_lasts(value: float, varying: bool, place: Place) -> None:
    x, c = torch.randn(2, 1500), coeffs(2, 3)
    x[1, 700] = value
    if varying:
        c = c[:, None].expand(2, 1500, 3).contiguous()
    with place.in_force():
        found = RECURSION(x, c, None, 1), RECURSION_TRANSPOSED(x, c, 1)
    assert_same(found[0], reference.recursion(x, c, None))
    assert_same(found[1], reference.recursion_transposed(x, c))


@IN_ORDERS
@pytest.mark.parametrize(("order", "dtype"), [(64, torch.float32), (32, torch.float64), (40, torch.float64)])
def test_emulated_orders_up_to_the_largest(order: int, dtype: torch.dtype, place: Place) -> None:
    x, c, state = torch.randn(1, 1300, dtype=dtype), coeffs(1, order, dtype=dtype), torch.randn(1, order, dtype=dtype)
    with place.in_force():
        found = RECURSION(x, c, state, 1), RECURSION_TRANSPOSED(x, c, 1)
    doubles = x.double(), c.double(), state.double()
    theirs = reference.recursion(x, c, state), reference.recursion_transposed(x, c)
    exact = reference.recursion(*doubles), reference.recursion_transposed(*doubles[:2])
    for ours, expected, pytorchs in zip(found, exact, theirs, strict=True):
        floor = 1e-5 if dtype == torch.float32 else 1e-11
        assert relative_error(ours, expected) <= max(2 * relative_error(pytorchs, expected), floor)


@IN_ORDERS
def test_emulated_coefficients_of_every_step_may_be_the_same_memory(place: Place) -> None:
    x, c = torch.randn(2, 800), coeffs(2, 5)
    with place.in_force():
        expected = RECURSION(x, c, None, -1), RECURSION_TRANSPOSED(x, c, -1)
        expanded = c[:, None].expand(2, 800, 5)
        found = RECURSION(x, expanded, None, -1), RECURSION_TRANSPOSED(x, expanded, -1)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_emulated_orders_of_threads_give_the_same_bits() -> None:
    x, c = torch.randn(3, 2100), 0.1 * torch.randn(3, 2100, 6)
    found = []
    for place in EMULATOR:
        with place.in_force():
            found.append(RECURSION(x, c, None, 1))
    assert all(torch.equal(other, found[0]) for other in found[1:])


def test_emulated_recursions_without_steps_or_lags() -> None:
    with aigc_fast.backend("cuda"):
        assert AF.ar_recursion(torch.ones(2, 0), torch.ones(3)).shape == (2, 0)
        assert AF.ar_recursion(torch.ones(0, 4), torch.ones(3)).shape == (0, 4)
        assert torch.equal(AF.ar_recursion(torch.ones(2, 4), torch.ones(0)), torch.ones(2, 4))


@pytest.mark.parametrize("kind", ["memory", "strides"])
def test_emulated_recursions_take_any_strides(kind: str) -> None:
    x, c, state = torch.randn(600, 2).t(), coeffs(2, 600, 3), torch.randn(3, 2).t()
    if kind == "strides":
        x, c = torch.randn(2, 1200)[:, ::2], torch.stack([c, c], 2)[:, :, 0]
    with aigc_fast.backend("cuda"):
        found = AF.ar_recursion(x, c, state)
    assert relative_error(found, reference.recursion(x.double(), c.double(), state.double())) < 1e-5


@pytest.mark.parametrize("varying", [False, True])
def test_emulated_rows_beyond_32_bits(varying: bool) -> None:
    x, c = (far_apart(2, *inner, step=2**31 + 3) for inner in ((40,), (40, 3) if varying else (3,)))
    c *= 0.1
    with aigc_fast.backend("cuda"):
        found = AF.ar_recursion(x, c)
    assert relative_error(found, reference.recursion(x.double(), c.double(), None)) < 1e-5


# Steps of a chain's tile in float32, and tiles of its window.
TILE, WINDOW = 8192, 32


def first_order(kind: str, length: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Two series, their coefficients and states."""
    shape = {"shared": (1, 1), "of each": (2, 1), "varying": (2, length, 1), "varying, shared": (1, length, 1)}[kind]
    return torch.randn(2, length, dtype=dtype), 1.9 * torch.rand(shape, dtype=dtype) - 0.95, torch.randn(2, 1).to(dtype)


def run_both(x: Tensor, c: Tensor, state: Tensor, backend: str) -> list[Tensor]:
    with aigc_fast.backend(backend):
        return [RECURSION(x, c, state, -1), RECURSION_TRANSPOSED(x, c, 1)]


@pytest.mark.parametrize("kind", ["shared", "of each", "varying", "varying, shared"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [601, TILE + 1028])
def test_emulated_chains_of_order_1(length: int, dtype: torch.dtype, kind: str) -> None:
    x, c, state = first_order(kind, length, dtype)
    exact, theirs = run_both(x.double(), c.double(), state.double(), "cpu"), run_both(x, c, state, "cpu")
    found = []
    for place in EMULATOR:
        with place.in_force():
            found.append([RECURSION(x, c, state, -1), RECURSION_TRANSPOSED(x, c, 1)])
        assert native.cuda.last_launch()["kernel"] == "recursion's chain"
    floor = 1e-6 if dtype == torch.float32 else 1e-14
    for ours, pytorchs, expected in zip(found[0], theirs, exact, strict=True):
        assert relative_error(ours, expected) <= max(2 * relative_error(pytorchs, expected), floor)
    # The same bits whichever tile is first.
    assert all(torch.equal(a, b) for others in found[1:] for a, b in zip(others, found[0], strict=True))


def test_emulated_chains_of_several_windows() -> None:
    series = first_order("of each", (WINDOW + 2) * TILE // 2 + 9, torch.float64)
    x, c, state = (tensor[:1] for tensor in series)
    with EMULATOR[1].in_force():
        found = RECURSION(x, c, state, -1)
    with aigc_fast.backend("cpu"):
        assert relative_error(found, RECURSION(x, c, state, -1)) < 1e-13


@IN_ORDERS
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e30])
def test_emulated_chains_of_what_is_not_finite_or_grows(value: float, place: Place) -> None:
    x, c, state = first_order("varying", 2 * TILE + 500)
    c = c.abs()
    x[0, TILE + 700] = value
    # For some steps of a tile the values grow beyond all that a factor may be, and overflow in the second series.
    c[:, 2 * TILE : 2 * TILE + 200] = torch.tensor([1.2, 3.0])[:, None, None]
    with place.in_force():
        found = RECURSION(x, c, state, 1)
    with aigc_fast.backend("cpu"):
        assert_same(found, RECURSION(x, c, state, 1))


@pytest.mark.parametrize("shift", [0, 1])
def test_emulated_chains_of_rows_that_are_not_aligned(shift: int) -> None:
    x, c, state = first_order("of each", TILE + 403)
    x = torch.randn(2, TILE + 404)[:, shift : shift + TILE + 402]
    for ours, expected in zip(run_both(x, c, state, "cuda"), run_both(x, c, state, "cpu"), strict=True):
        assert relative_error(ours, expected) < 1e-6
