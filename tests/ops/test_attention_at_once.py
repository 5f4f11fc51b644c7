"""Plain calls of scaled_dot_product_attention, whose tensors the kernel takes as PyTorch lends them."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as TF
from attention_cases import ATTENTIONS, FEW_ATTENTIONS, Attention
from attention_checks import DTYPES_OF_THE_KERNELS, LAYOUTS, every_gradient
from parity import FLOORS, assert_parity, relative_error
from torch import Tensor

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.runtime import native


class TestAtOnce:
    """Plain calls, whose tensors the kernel takes as PyTorch lends them."""

    pytestmark = pytest.mark.skipif(not native.takes_tensors, reason="this torch lends no tensors, or no library")

    @pytest.mark.parametrize("dtype", DTYPES_OF_THE_KERNELS)
    @pytest.mark.parametrize("layout", ["contiguous", "heads after lengths", "in a sea of NaN"])
    @pytest.mark.parametrize("case", [c for c in ATTENTIONS if c.window is None and not c.value_size], ids=str)
    def test_numbers_of_the_op(self, case: Attention, layout: str, dtype: torch.dtype, attentions: list[str]) -> None:
        tensors = [LAYOUTS.get(layout, Tensor.clone)(tensor) for tensor in case.tensors(dtype)]
        arguments = case.arguments() | {"alignment": "upper_left"}
        is_ours = aigc_fast.explain("attention", *tensors, **arguments).chosen == "cpu"
        found = AF.scaled_dot_product_attention(*tensors, **arguments)
        assert len(attentions) == is_ours
        with aigc_fast.backend("cpu"):
            expected = AF.scaled_dot_product_attention(*tensors, **arguments)
        if is_ours:
            assert torch.equal(found, expected)
            assert found.stride() == expected.stride()
        else:
            assert relative_error(found, expected) < 2 * FLOORS[dtype]

    @pytest.mark.parametrize("case", FEW_ATTENTIONS, ids=str)
    def test_parity_on_every_level(self, case: Attention, isa: str) -> None:
        case = replace(case, window=None, alignment="upper_left", value_size=None)
        tensors, arguments = case.tensors(), case.arguments()
        exact = case.expected(*(tensor.double() for tensor in tensors), arguments["attn_mask"])
        found = AF.scaled_dot_product_attention(*tensors, **arguments)
        assert_parity(found, case.expected(*tensors, arguments["attn_mask"]), exact, str(case))

    @pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
    @pytest.mark.parametrize(
        "shape", [(), (9,), (1,), (7, 1), (7, 9), (3, 1, 9), (3, 7, 1), (2, 1, 1, 9), (2, 3, 7, 9)]
    )
    def test_masks_that_are_broadcast(self, shape: tuple[int, ...], dtype: torch.dtype, attentions: list[str]) -> None:
        q, k, v = torch.randn(2, 3, 7, 16), torch.randn(2, 3, 9, 16), torch.randn(2, 3, 9, 16)
        mask = torch.randn(shape) if dtype == torch.float32 else torch.rand(shape) < 0.8
        found = AF.scaled_dot_product_attention(q, k, v, mask)
        expected = AF.scaled_dot_product_attention(q, k, v, mask.expand(2, 3, 7, 9).contiguous())
        assert len(attentions) == 2
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("scale", [None, 0.0, 0.3, -2.0, math.nan])
    def test_scale(self, scale: float | None, attentions: list[str]) -> None:
        q, k, v = (torch.randn(2, 5, 16) for _ in range(3))
        found = AF.scaled_dot_product_attention(q, k, v, scale=scale)
        assert len(attentions) == (scale is None or math.isfinite(scale))
        expected = TF.scaled_dot_product_attention(q, k, v, scale=scale)
        torch.testing.assert_close(found, expected, equal_nan=True)

    @pytest.mark.parametrize("dtype", DTYPES_OF_THE_KERNELS)
    @pytest.mark.parametrize("layout", ["contiguous", "heads after lengths", "in a sea of NaN"])
    @pytest.mark.parametrize("case", [c for c in ATTENTIONS if c.window is None], ids=str)
    def test_gradients_of_the_op(self, case: Attention, layout: str, dtype: torch.dtype, attentions: list[str]) -> None:
        tensors = [LAYOUTS.get(layout, Tensor.clone)(tensor) for tensor in case.tensors(dtype)]
        gradient = torch.randn(*tensors[0].shape[:3], tensors[2].shape[3], dtype=dtype)
        attend = partial(AF.scaled_dot_product_attention, **case.arguments() | {"alignment": "upper_left"})
        found = every_gradient(attend, tensors, gradient)
        assert attentions == ["attention", "attention_backward"]
        with aigc_fast.backend("cpu"):
            expected = every_gradient(attend, tensors, gradient)
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)
            assert a.stride() == b.stride()

    @pytest.mark.parametrize("shape", [(9,), (7, 1), (3, 1, 9), (2, 1, 1, 9)])
    def test_second_derivatives_with_masks_that_are_broadcast(self, shape: tuple[int, ...]) -> None:
        tensors = [torch.randn(2, 3, length, 16) for length in (7, 9, 9)]
        mask = torch.randn(shape)

        def second(*tensors: Tensor) -> tuple[Tensor, ...]:
            inputs = [tensor.clone().requires_grad_() for tensor in tensors]
            attended = AF.scaled_dot_product_attention(*inputs, mask.to(inputs[0].dtype))
            first = torch.autograd.grad(attended.square().sum(), inputs, create_graph=True)
            return torch.autograd.grad(sum(grad.square().sum() for grad in first), inputs)

        for found, exact in zip(second(*tensors), second(*(t.double() for t in tensors)), strict=True):
            assert relative_error(found, exact) < 1e-5

    @pytest.mark.parametrize("wrong", ["key", "value", "attn_mask"])
    def test_wrong_arguments_that_want_gradients_are_named(self, wrong: str) -> None:
        tensors = {name: torch.randn(2, 3, 7, 16, requires_grad=True) for name in ("query", "key", "value")}
        tensors[wrong] = torch.randn(2, 3, 5, 8, requires_grad=wrong != "attn_mask")
        with pytest.raises(RuntimeError, match=f"{wrong} has"):
            AF.scaled_dot_product_attention(**tensors)

    @pytest.mark.parametrize("shape", [(0, 2, 3, 8), (2, 0, 3, 8), (2, 2, 0, 8), (2, 2, 3, 0), (5, 16), (2, 5, 16)])
    def test_shapes_that_want_gradients(self, shape: tuple[int, ...]) -> None:
        tensors = [torch.randn(shape, requires_grad=True) for _ in range(3)]
        found, expected = (F.scaled_dot_product_attention(*tensors) for F in (AF, TF))
        torch.testing.assert_close(found, expected)
        grads = [torch.autograd.grad(output.sum(), tensors) for output in (found, expected)]
        torch.testing.assert_close(*grads)

    def test_what_is_not_plain_is_looked_at(self, attentions: list[str]) -> None:
        q = torch.view_as_complex(torch.randn(1, 2, 7, 16, 2)).conj().imag
        assert q.is_neg()
        k = torch.randn(1, 2, 7, 16)
        torch.testing.assert_close(
            AF.scaled_dot_product_attention(q, k, k), TF.scaled_dot_product_attention(q.resolve_neg(), k, k)
        )
        mask = torch.zeros(7, 7, requires_grad=True)
        assert AF.scaled_dot_product_attention(k, k, k, mask).requires_grad
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert AF.scaled_dot_product_attention(k, k, k).dtype == torch.bfloat16
