"""Derivatives of scaled_dot_product_attention of every order, of sharp rows too."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from attention_cases import FEW_ATTENTIONS, MASKS, Attention
from attention_checks import assert_all_parity, double_gradient, every_gradient, needs_native
from parity import DTYPES, relative_error
from torch import Tensor

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.ops.attention import reference

# Rows in which one key has nearly all the weight, where differences of nearly equal numbers are what is left.
SHARP = [
    Attention(3, 8, 1, 100, 80, 24, kv_heads=2, mask="bool"),
    Attention(1, 1, 2, 257, 80, 24, causal=True),
    Attention(2, 2, 2, 64, 80, 1, causal=True),
    Attention(2, 6, 2, 257, 193, 24, kv_heads=3),
    Attention(2, 3, 5, 64, 193),
    Attention(1, 8, 8, 257, 193, kv_heads=2, mask="float"),
    Attention(1, 2, 1, 1500, 64, 24),
    Attention(2, 2, 7, 40, 24, causal=True, mask="blind"),
    Attention(2, 4, 150, 200, 64, 24, causal=True),
]


class TestSharpRows:
    """Gradients as near to float64's as PyTorch's, whose softmax keeps what it multiplies with."""

    @needs_native
    @pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
    @pytest.mark.parametrize("case", SHARP, ids=str)
    def test_gradients_on_every_level(self, case: Attention, dtype: str, isa: str) -> None:
        with aigc_fast.backend("cpu"):
            assert_all_parity(case, case.tensors(DTYPES[dtype]), scale=1.0)

    @pytest.mark.parametrize("dtype", ["fp32", "bf16"])
    @pytest.mark.parametrize("case", SHARP, ids=str)
    def test_gradients_of_every_backend(self, case: Attention, dtype: str, backend: str) -> None:
        assert_all_parity(case, case.tensors(DTYPES[dtype]), scale=1.0)

    @pytest.mark.parametrize("dtype", ["fp32", "bf16"])
    @pytest.mark.parametrize("case", SHARP[3:], ids=str)
    def test_double_backward(self, case: Attention, dtype: str) -> None:
        assert_all_parity(case, case.tensors(DTYPES[dtype]), double_gradient, scale=1.0)

    def test_scores_far_from_zero(self, backend: str) -> None:
        """The log-sum-exp of a row of great scores has no digits left for their differences."""
        case = Attention(2, 2, 30, 100, 16)
        q, k, v = case.tensors()
        q[..., 0], k[..., 0] = 32.0, 64.0
        assert_all_parity(case, [q, k, v])

    @needs_native
    @hypothesis.settings(max_examples=80)
    @hypothesis.given(
        st.builds(
            Attention,
            batch=st.integers(1, 3),
            heads=st.sampled_from([2, 4, 8]),
            queries=st.integers(1, 8),
            keys=st.sampled_from([1, 2, 7, 64, 100, 257]),
            size=st.sampled_from([1, 8, 24, 64, 80, 193]),
            value_size=st.sampled_from([1, 8, 24, 80, 193]),
            kv_heads=st.sampled_from([None, 1, 2]),
            causal=st.booleans(),
            mask=st.sampled_from(["none", "bool", "padding", "float", "blind"]),
        ),
        st.sampled_from(["fp32", "bf16", "fp16"]),
        st.sampled_from([None, 1.0]),
    )
    def test_random_calls_of_few_queries(self, case: Attention, dtype: str, scale: float | None) -> None:
        torch.manual_seed(0)
        with aigc_fast.backend("cpu"):
            assert_all_parity(case, case.tensors(DTYPES[dtype]), scale=scale)


@needs_native
def test_few_keys_round_less_than_long_sums_on_every_level(isa: str) -> None:
    """Sums of 64 products in a row leave 8.3e-8 and 1.9e-7."""
    tensors, gradient = Attention(8, 8, 70, 2, 64).tensors(), torch.randn(8, 8, 70, 64)
    exact = every_gradient(AF.scaled_dot_product_attention, [t.double() for t in tensors], gradient)
    with aigc_fast.backend("cpu"):
        found = every_gradient(AF.scaled_dot_product_attention, tensors, gradient)
    for ours, expected, most in zip(found[:2], exact[:2], (7.6e-8, 1.7e-7), strict=True):
        assert relative_error(ours, expected) < most


@pytest.mark.parametrize("case", FEW_ATTENTIONS, ids=str)
def test_double_backward(case: Attention, backend: str) -> None:
    assert_all_parity(case, case.tensors(), double_gradient)


@pytest.mark.parametrize("case", [Attention(2, 2, 64, 64, 64), Attention(2, 2, 16, 100, 64)], ids=str)
def test_double_backward_of_sharp_rows(case: Attention, backend: str) -> None:
    q, k, v = case.tensors()
    assert_all_parity(case, [3 * q, 3 * k, v], compute=double_gradient)


@pytest.mark.parametrize("mask", ["float", "float row"])
def test_the_gradient_to_a_mask(mask: str) -> None:
    case = Attention(2, 2, 70, 80, 16, causal=True)
    bias = MASKS[mask](case).requires_grad_()
    tensors = [t.requires_grad_() for t in case.tensors()]
    output = AF.scaled_dot_product_attention(*tensors, bias, is_causal=True)
    gradient = torch.randn_like(output)
    found = torch.autograd.grad(output, [*tensors, bias], gradient)
    exact_inputs = [t.detach().double().requires_grad_() for t in (*tensors, bias)]
    exact = torch.autograd.grad(case.expected(*exact_inputs), exact_inputs, gradient.double())
    for ours, theirs in zip(found, exact, strict=True):
        assert relative_error(ours, theirs) < 2e-6


@pytest.mark.parametrize("case", [FEW_ATTENTIONS[0], FEW_ATTENTIONS[2], FEW_ATTENTIONS[6]], ids=str)
def test_third_derivatives(case: Attention) -> None:
    arguments = case.arguments()

    def third(attention: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
        inputs = [tensor.requires_grad_() for tensor in tensors]
        value = attention(*inputs)
        for _ in range(2):
            value = sum(g.square().sum() for g in torch.autograd.grad(value.square().sum(), inputs, create_graph=True))
        return list(torch.autograd.grad(value, inputs))

    tensors = case.tensors()
    found = third(lambda *t: AF.scaled_dot_product_attention(*t, **arguments), [t.clone() for t in tensors])
    theirs = third(lambda *t: case.expected(*t, arguments["attn_mask"]), [t.clone() for t in tensors])
    exact = third(lambda *t: case.expected(*t, arguments["attn_mask"]), [t.double() for t in tensors])
    for index, (a, b, c) in enumerate(zip(found, theirs, exact, strict=True)):
        assert relative_error(a, c) < max(4 * relative_error(b, c), 1e-5), f"result {index}"


def test_self_attention_of_one_tensor(backend: str) -> None:
    x = torch.randn(1, 2, 70, 16, requires_grad=True)
    case = Attention(1, 2, 70, 70, 16)
    gradient = torch.randn(1, 2, 70, 16)

    def second(attention: Callable[..., Tensor], x: Tensor) -> Tensor:
        (first,) = torch.autograd.grad(attention(x, x, x), x, gradient.to(x.dtype), create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    exact = second(lambda *t: case.expected(*t, None), x.detach().double().requires_grad_())
    assert relative_error(second(AF.scaled_dot_product_attention, x), exact) < 5e-6


def test_gradcheck_of_the_reference() -> None:
    q, k, v = (t.double().requires_grad_() for t in Attention(1, 2, 3, 4, 3, value_size=2).tensors())
    mask = torch.tensor([[True, False, True, True], [False] * 4, [True] * 4])

    def compute(*tensors: Tensor) -> Tensor:
        return reference.attention(*tensors, mask, None, 0.0, 2, 1, 0, 0.7)[0]

    assert torch.autograd.gradcheck(compute, (q, k, v))
    assert torch.autograd.gradgradcheck(compute, (q, k, v))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_training_compiles_whole(dtype: torch.dtype, backend: str) -> None:
    """In a compiled graph the reference runs below autograd, where it records nothing to differentiate."""
    case = Attention(2, 4, 50, 60, 8, kv_heads=2, causal=True, mask="blind")
    tensors, arguments, gradient = case.tensors(dtype), case.arguments(), torch.randn(2, 4, 50, 8)
    call = partial(AF.scaled_dot_product_attention, **arguments)
    with aigc_fast.backend(backend):
        found = every_gradient(torch.compile(call, fullgraph=True, backend="aot_eager"), tensors, gradient)
    expected = every_gradient(partial(case.expected, mask=arguments["attn_mask"]), tensors, gradient)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
