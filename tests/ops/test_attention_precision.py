"""scaled_dot_product_attention under PyTorch's switch for the precision of float32."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from attention_cases import FEW_ATTENTIONS, Attention
from attention_checks import PRECISIONS, every_gradient, needs_native
from parity import float32_precision, relative_error

import aigc_fast
import aigc_fast.functional as AF


class TestPrecision:
    """PyTorch's switch for float32: factors that are the sum of two bfloat16, or one, where the processor multiplies
    these faster."""

    @needs_native
    @pytest.mark.parametrize("precision", PRECISIONS)
    @pytest.mark.parametrize("case", FEW_ATTENTIONS, ids=str)
    def test_errors_on_every_level(self, case: Attention, precision: str, isa: str) -> None:
        tensors, arguments = case.tensors(), case.arguments()
        gradient = torch.randn(*tensors[0].shape[:3], tensors[2].shape[3])
        with aigc_fast.backend("cpu"), float32_precision(precision):
            found = every_gradient(partial(AF.scaled_dot_product_attention, **arguments), tensors, gradient)
        exact = every_gradient(
            partial(case.expected, mask=arguments["attn_mask"]), [t.double() for t in tensors], gradient
        )
        for ours, expected in zip(found, exact, strict=True):
            assert relative_error(ours, expected) < PRECISIONS[precision]

    @needs_native
    @pytest.mark.parametrize("which", [0, 1, 2])
    @pytest.mark.parametrize("value", [math.inf, math.nan, 3.4e38])
    def test_what_cannot_be_split_on_every_level(self, value: float, which: int, isa: str) -> None:
        """A rest of infinity would be NaN, which spreads."""
        tensors = Attention(1, 2, 40, 90, 16).tensors()
        tensors[which][0, 1, 30, 5] = value
        with aigc_fast.backend("cpu"):
            exact = AF.scaled_dot_product_attention(*tensors)
            with float32_precision("high"):
                found = AF.scaled_dot_product_attention(*tensors)
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4, equal_nan=True)

    @needs_native
    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_more_keys_than_are_packed_at_once_on_every_level(self, precision: str, isa: str) -> None:
        case = Attention(2, 2, 33, 50_000, 33, window=30)
        q, k, v = case.tensors()
        with aigc_fast.backend("cpu"), float32_precision(precision):
            found = AF.scaled_dot_product_attention(q, k, v, window=case.window)
        near = [tensor[:, :, :70].double() for tensor in (k, v)]
        exact = replace(case, keys=70).expected(q.double(), *near, None)
        assert relative_error(found, exact) < PRECISIONS[precision]
