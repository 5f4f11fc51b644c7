"""The recursion's sign: that of the coefficients, turned over without a copy of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import RECURSIONS, Recursion
from parity import FLOORS, opcheck, relative_error
from test_recursion import SHORT, every_gradient, needs_native
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.ops.recursion.operators import RECURSION, RECURSION_TRANSPOSED


def turned(x: Tensor, coeffs: Tensor, state: Tensor | None = None) -> Tensor:
    return RECURSION(x, coeffs, state, -1)


def negated(x: Tensor, coeffs: Tensor, state: Tensor | None = None) -> Tensor:
    return RECURSION(x, -coeffs, state, 1)


def tensors_of(case: Recursion, dtype: torch.dtype) -> list[Tensor]:
    x, coeffs, *state = case.tensors(dtype)
    return [x, -coeffs if coeffs.dim() > 1 else -coeffs[None], *state]


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", RECURSIONS, ids=str)
def test_on_every_level(case: Recursion, dtype: torch.dtype, isa: str) -> None:
    tensors, weights = tensors_of(case, dtype), torch.randn(case.batch, case.length, dtype=dtype)
    with aigc_fast.backend("cpu"):
        found, wanted = ([f(*tensors), *every_gradient(f, tensors, weights)] for f in (turned, negated))
    for ours, theirs in zip(found, wanted, strict=True):
        assert relative_error(ours, theirs) < FLOORS[dtype]


@pytest.mark.parametrize(
    "case", [SHORT[0], Recursion(2, 6, 2, "series", True), Recursion(2, 6, 3, "varying", True)], ids=str
)
def test_derivatives(case: Recursion, backend: str) -> None:
    tensors = [tensor.requires_grad_() for tensor in tensors_of(case, torch.float64)]
    forward_mode = backend == "reference"
    assert torch.autograd.gradcheck(turned, tensors, check_forward_ad=forward_mode, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(turned, tensors)
    assert torch.autograd.gradgradcheck(lambda u, c: RECURSION_TRANSPOSED(u, c, -1), tensors[:2])


@pytest.mark.parametrize("kind", ["shared", "series", "varying"])
def test_ops_are_registered_as_torch_expects(kind: str, backend: str) -> None:
    x, coeffs, state = (t.requires_grad_() for t in tensors_of(Recursion(2, 12, 3, kind, True), torch.float32))
    opcheck(torch.ops.aigc_fast.recursion.default, (x, coeffs, state, -1))
    opcheck(torch.ops.aigc_fast.recursion_transposed.default, (x, coeffs, -1))
    opcheck(torch.ops.aigc_fast.recursion_lags.default, (x, x, state, 3, kind == "varying", -1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits(dtype: torch.dtype, backend: str) -> None:
    tensors = tensors_of(Recursion(2, 70, 7, "varying", True), dtype)
    assert torch.equal(turned(*tensors), negated(*tensors))


def test_a_filter_of_every_step_copies_no_coefficients() -> None:
    called: list[str] = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if any(isinstance(arg, Tensor) and arg.dim() == 3 for arg in args):
                called.append(func.name())
            return func(*args, **(kwargs or {}))

    x, a = (t.requires_grad_() for t in tensors_of(Recursion(3, 40, 5, "varying"), torch.float32))
    with Names():
        torch.autograd.grad(AF.sample_wise_lpc(x, a), (x, a), torch.ones(3, 40))
    assert [name for name in called if name != "aten::detach"] == [
        "aigc_fast::recursion",
        "aigc_fast::recursion_transposed",
    ]
