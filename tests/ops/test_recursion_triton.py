"""The Triton kernels of recursions, in the interpreter."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch
from cases import Recursion, stable_coeffs
from memory import far_apart
from parity import assert_parity, relative_error
from places import INTERPRETER
from torch import Tensor
from watching import INTERPRETED, launches

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.ops.recursion import reference
from aigc_fast.ops.recursion.operators import RECURSION, RECURSION_LAGS, RECURSION_TRANSPOSED
from aigc_fast.runtime.backends import BackendError

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="TRITON_INTERPRET=1 is not set")
KINDS = ["shared", "series", "varying"]


@pytest.fixture(autouse=True)
def _interpreter() -> Iterator[None]:
    with INTERPRETER.in_force():
        yield


def close(found: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32) -> None:
    assert (found.shape, found.dtype) == (expected.shape, dtype)
    assert relative_error(found, expected) <= INTERPRETER.floor(dtype)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [1, 3, 5, 8])
def test_interpreted_every_op(order: int, kind: str, sign: int) -> None:
    x, coeffs, state = Recursion(35, 13, order, kind, True).tensors()
    coeffs = sign * (coeffs if coeffs.dim() > 1 else coeffs[None])
    with launches() as launched:
        found = (
            RECURSION(x, coeffs, state, sign),
            RECURSION_TRANSPOSED(x, coeffs, sign),
            RECURSION_LAGS(x, x.flip(1), state, order, kind == "varying", sign),
        )
    assert launched == ["triton:_run", "triton:_run", "triton:_lags"]

    def expected(x: Tensor, coeffs: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (
            reference.recursion(x, coeffs, state, sign),
            reference.recursion_transposed(x, coeffs, sign),
            reference.recursion_lags(x, x.flip(1), state, order, kind == "varying", sign),
        )

    exact = expected(x.double(), coeffs.double(), state.double())
    # Filters of high order are ill-conditioned: the reference in float32 errs as much.
    for ours, theirs, wanted in zip(found, expected(x, coeffs, state), exact, strict=True):
        assert_parity(ours, theirs, wanted, kind, floor=INTERPRETER.floor(torch.float32))


@pytest.mark.skipif(sys.platform == "win32", reason="no memory of addresses alone")
def test_interpreted_coefficients_beyond_32_bits() -> None:
    x, coeffs = Recursion(3, 6, 2, "varying", False).tensors()
    # A step's stride is of 32 bits, what comes of the last steps is not.
    apart = far_apart(6, 3, 2, step=2**29).copy_(coeffs.transpose(0, 1)).transpose(0, 1)
    assert torch.equal(RECURSION(x, apart, None, 1), RECURSION(x, coeffs, None, 1))
    assert torch.equal(RECURSION_TRANSPOSED(x, apart, 1), RECURSION_TRANSPOSED(x, coeffs, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_interpreted_16_bits_compute_in_float32(kind: str, dtype: torch.dtype) -> None:
    x, coeffs, state = Recursion(3, 21, 4, kind, True).tensors(dtype)
    exact = reference.recursion(
        x.double(), coeffs.double() if coeffs.dim() > 1 else coeffs[None].double(), state.double()
    )
    close(AF.ar_recursion(x, coeffs, state), exact, dtype)


def test_interpreted_gradients_of_two_orders() -> None:
    inputs = [tensor.requires_grad_() for tensor in Recursion(2, 9, 2, "varying", True).tensors(torch.float64)]

    def both(*tensors: Tensor) -> list[Tensor]:
        y, last = AF.ar_recursion(*tensors, return_state=True)
        first = torch.autograd.grad(y.sin().sum() + last.sum(), tensors, create_graph=True)
        return [*first, *torch.autograd.grad(sum(grad.square().sum() for grad in first), tensors)]

    found = both(*(tensor.detach().float().requires_grad_() for tensor in inputs))
    with aigc_fast.backend("reference"):
        expected = both(*inputs)
    for ours, exact in zip(found, expected, strict=True):
        assert relative_error(ours, exact) < 5e-6


@pytest.mark.parametrize("kind", KINDS)
def test_interpreted_streaming_gives_the_samples_of_one_call(kind: str) -> None:
    x, coeffs, state = Recursion(2, 23, 3, kind, True).tensors()
    whole, pieces = AF.ar_recursion(x, coeffs, state), []
    for part in (slice(0, 1), slice(1, 9), slice(9, 23)):
        of_part = coeffs[:, part] if kind == "varying" else coeffs
        y, state = AF.ar_recursion(x[:, part], of_part, state, return_state=True)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_interpreted_what_is_not_finite_lasts(value: float) -> None:
    x, coeffs = torch.randn(2, 20), stable_coeffs(torch.randn(2, 3))
    x[1, 7] = value
    for found, expected in (
        (RECURSION(x, coeffs, None, 1), reference.recursion(x, coeffs, None)),
        (RECURSION_TRANSPOSED(x, coeffs, 1), reference.recursion_transposed(x, coeffs)),
    ):
        torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("lay", [lambda t: t.t().contiguous().t(), lambda t: t[:, ::2], lambda t: t[:1].expand(3, -1)])
def test_interpreted_strides(lay: object) -> None:
    x, coeffs = torch.randn(3, 16), stable_coeffs(torch.randn(3, 4))
    laid = lay(x)
    close(AF.ar_recursion(laid, lay(coeffs)), reference.recursion(laid.double(), lay(coeffs).double(), None))


@pytest.mark.parametrize("shape", [(0, 5), (4, 0)])
@pytest.mark.parametrize("kind", KINDS)
def test_interpreted_empty_sizes(shape: tuple[int, int], kind: str) -> None:
    inputs = [tensor.requires_grad_() for tensor in Recursion(*shape, 3, kind, True).tensors()]
    y = AF.ar_recursion(*inputs)
    gradients = torch.autograd.grad(y.sum(), inputs)
    assert y.shape == shape
    assert all((grad == 0).all() and grad.shape == input.shape for grad, input in zip(gradients, inputs, strict=True))


def test_interpreted_orders_that_are_not_kept() -> None:
    x = torch.randn(2, 5)
    close(AF.ar_recursion(x, torch.zeros(0)), x.double())
    with pytest.raises(BackendError, match="triton: order 9: Triton's kernels take up to 8"):
        AF.ar_recursion(x, torch.zeros(9))
