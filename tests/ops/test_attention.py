"""scaled_dot_product_attention against PyTorch in float64: masks, bands, layouts, dtypes, dropout, every level."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as TF
from cases import ATTENTIONS, DTYPES, FLOORS, MASKS, Attention, assert_parity, float32_precision, relative_error
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.ops.attention import reference
from aigc_fast.ops.attention.operators import ATTENTION
from aigc_fast.runtime import native

DTYPES_OF_THE_KERNELS = [torch.float32, torch.bfloat16, torch.float16]
FEW = [ATTENTIONS[i] for i in (0, 1, 4, 5, 9, 12, 16, 25, -7, -3)]
WIDE = [Attention(1, 4, 130, 90, 100), Attention(2, 4, 64, 64, 192, kv_heads=2), Attention(1, 2, 70, 60, 128)]
# The relative error that each may bring, forward and backward.
PRECISIONS = {"high": 2e-5, "medium": 1e-2}
needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))


def every_gradient(compute: Callable[..., Tensor], tensors: list[Tensor], gradient: Tensor) -> list[Tensor]:
    """The output and the gradients to query, key and value."""
    inputs = [tensor.detach().requires_grad_() for tensor in tensors]
    output = compute(*inputs)
    return [output.detach(), *torch.autograd.grad(output, inputs, gradient.to(output.dtype))]


def double_gradient(compute: Callable[..., Tensor], tensors: list[Tensor], gradient: Tensor) -> list[Tensor]:
    """The gradients of a weighted sum of the gradients, to the output's gradient too."""
    inputs = [tensor.detach().requires_grad_() for tensor in (*tensors, gradient.to(tensors[0].dtype))]
    first = torch.autograd.grad(compute(*inputs[:3]), inputs[:3], inputs[3], create_graph=True)
    weights = [torch.linspace(-1, 1, grad.numel(), dtype=grad.dtype).view_as(grad) for grad in first]
    total = sum((weight * grad).sum() for weight, grad in zip(weights, first, strict=True))
    return list(torch.autograd.grad(total, inputs))


def assert_all_parity(
    case: Attention,
    tensors: list[Tensor],
    compute: Callable[..., list[Tensor]] = every_gradient,
    ours: Callable[..., Tensor] = AF.scaled_dot_product_attention,
    scale: float | None = None,
) -> None:
    arguments = case.arguments() | {"scale": scale}
    mask = arguments["attn_mask"]
    gradient = torch.randn(*tensors[0].shape[:3], tensors[2].shape[3])
    found = compute(lambda *inputs: ours(*inputs, **arguments), tensors, gradient)
    theirs = compute(lambda *inputs: case.expected(*inputs, mask, scale), tensors, gradient)
    exact = compute(lambda *inputs: case.expected(*inputs, mask, scale), [t.double() for t in tensors], gradient)
    for index, (a, b, c) in enumerate(zip(found, theirs, exact, strict=True)):
        assert_parity(a, b, c, f"{case}: result {index}")


@pytest.mark.parametrize("case", ATTENTIONS, ids=str)
def test_forward_and_gradients(case: Attention, backend: str) -> None:
    assert_all_parity(case, case.tensors())


@needs_native
@pytest.mark.parametrize("case", ATTENTIONS, ids=str)
def test_forward_and_gradients_on_every_level(case: Attention, isa: str) -> None:
    with aigc_fast.backend("cpu"):
        assert_all_parity(case, case.tensors())


class TestAtOnce:
    """Plain calls, whose tensors the kernel takes as PyTorch lends them."""

    pytestmark = pytest.mark.skipif(not native.takes_tensors, reason="this torch lends no tensors, or no library")

    @pytest.mark.parametrize("dtype", DTYPES_OF_THE_KERNELS)
    @pytest.mark.parametrize("layout", ["contiguous", "heads after lengths", "in a sea of NaN"])
    @pytest.mark.parametrize("case", [c for c in ATTENTIONS if c.window is None and not c.value_size], ids=str)
    def test_numbers_of_the_op(self, case: Attention, layout: str, dtype: torch.dtype, attentions: list[str]) -> None:
        tensors = [LAYOUTS.get(layout, Tensor.clone)(tensor) for tensor in case.tensors(dtype)]
        arguments = case.arguments() | {"alignment": "upper_left"}
        found = AF.scaled_dot_product_attention(*tensors, **arguments)
        assert len(attentions) == 1
        with aigc_fast.backend("cpu"):
            expected = AF.scaled_dot_product_attention(*tensors, **arguments)
        assert torch.equal(found, expected)
        assert found.stride() == expected.stride()

    @pytest.mark.parametrize("case", FEW, ids=str)
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


@needs_native
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("case", FEW, ids=str)
def test_16_bits_on_every_level(case: Attention, dtype: str, isa: str) -> None:
    with aigc_fast.backend("cpu"):
        assert_all_parity(case, case.tensors(DTYPES[dtype]))


class TestPrecision:
    """PyTorch's switch for float32: factors that are the sum of two bfloat16, or one, where the processor multiplies
    these faster."""

    @needs_native
    @pytest.mark.parametrize("precision", PRECISIONS)
    @pytest.mark.parametrize("case", FEW, ids=str)
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


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp64"])
@pytest.mark.parametrize("case", FEW, ids=str)
def test_dtypes(case: Attention, dtype: str) -> None:
    assert_all_parity(case, case.tensors(DTYPES[dtype]))


@pytest.mark.parametrize("case", FEW, ids=str)
def test_double_backward(case: Attention, backend: str) -> None:
    assert_all_parity(case, case.tensors(), double_gradient)


def in_a_sea_of_nan(tensor: Tensor) -> Tensor:
    """The same values with NaN before, between and after the rows, and strides that are far apart."""
    sea = torch.full([extent + 2 for extent in tensor.shape], math.nan, dtype=tensor.dtype)
    island = sea[1:-1, 1:-1, 1:-1, 1:-1]
    return island.copy_(tensor)


LAYOUTS = {
    "heads after lengths": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "lengths innermost": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "batch innermost": lambda t: t.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "in a sea of NaN": in_a_sea_of_nan,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", FEW, ids=str)
def test_layouts(case: Attention, layout: str, backend: str) -> None:
    def ours(*tensors: Tensor, **arguments: Any) -> Tensor:
        return AF.scaled_dot_product_attention(*(LAYOUTS[layout](tensor) for tensor in tensors), **arguments)

    assert_all_parity(case, case.tensors(), ours=ours)


@needs_native
def test_heads_after_lengths_are_neither_copied_nor_reordered() -> None:
    q, k, v = (torch.randn(2, 50, 4, 16).transpose(1, 2) for _ in range(3))
    with aigc_fast.backend("cpu"):
        assert AF.scaled_dot_product_attention(q, k, v).stride() == q.stride()


@pytest.mark.parametrize("dims", [2, 3, 5])
def test_numbers_of_dimensions(dims: int, backend: str) -> None:
    lead = (2, 3, 2)[5 - dims :] if dims < 5 else (2, 3, 2)
    q, k, v = (torch.randn(*lead, length, 16) for length in (33, 40, 40))
    for mask in (None, torch.rand(33, 40) < 0.5, torch.rand(*lead, 33, 40) < 0.5):
        found = AF.scaled_dot_product_attention(q, k, v, mask)
        torch.testing.assert_close(found, TF.scaled_dot_product_attention(q, k, v, mask))


def test_batches_and_heads_that_are_broadcast(backend: str) -> None:
    q, k, v = torch.randn(3, 4, 60, 16), torch.randn(1, 1, 70, 16), torch.randn(3, 4, 70, 16)
    found = AF.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(found, TF.scaled_dot_product_attention(q, k.expand(3, 4, -1, -1), v))


LEADING = {
    "a query for all batches": ((4,), (3, 4), (3, 4)),
    "keys for all batches": ((3, 4), (4,), (4,)),
    "values of more batches": ((4,), (4,), (3, 4)),
    "a head for all": ((3, 1), (3, 4), (3, 4)),
    "keys of one head, values of all": ((3, 4), (1,), (1, 4)),
    "no heads": ((), (3, 4), (3, 4)),
    "no heads for keys": ((2, 3, 4), (), (3, 1)),
    "five dimensions and four": ((2, 1, 4), (3, 4), (2, 3, 1)),
    "two dimensions and three": ((), (4,), ()),
    "nothing": ((0, 4), (4,), (1, 4)),
}


def skip_what_the_kernels_leave(backend: str, dtype: torch.dtype) -> None:
    if backend == "cpu" and dtype not in DTYPES_OF_THE_KERNELS:
        pytest.skip("the reference's")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("lead", LEADING)
def test_leading_sizes_are_broadcast(lead: str, dtype: torch.dtype, backend: str) -> None:
    skip_what_the_kernels_leave(backend, dtype)
    shapes = LEADING[lead]
    tensors = [torch.randn(*sizes, length, 8) for sizes, length in zip(shapes, (5, 9, 9), strict=True)]
    whole = torch.broadcast_shapes(*shapes[:2])
    masks = {"bool": torch.rand(5, 9) < 0.7, "float": torch.randn(1, 9), "batched": torch.rand(*whole, 5, 9) < 0.7}
    gradient = torch.randn(*torch.broadcast_shapes(*shapes), 5, 8)
    for arguments in ({}, {"is_causal": True}, *({"attn_mask": mask} for mask in masks.values())):
        assert_pytorchs_numbers([tensor.to(dtype) for tensor in tensors], arguments, gradient)


def assert_pytorchs_numbers(tensors: list[Tensor], arguments: dict[str, Any], gradient: Tensor) -> None:
    """Output and gradients beside those of PyTorch's function."""

    def compute(attention: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        mask = arguments.get("attn_mask")
        cast = {"attn_mask": mask.to(dtype)} if mask is not None and mask.is_floating_point() else {}
        attend = partial(attention, **arguments | cast)
        return every_gradient(attend, [tensor.to(dtype) for tensor in tensors], gradient)

    ours, theirs, exact = AF.scaled_dot_product_attention, TF.scaled_dot_product_attention, torch.float64
    results = compute(ours, tensors[0].dtype), compute(theirs, tensors[0].dtype), compute(theirs, exact)
    shown = [tuple(tensor.shape) for tensor in tensors]
    for index, values in enumerate(zip(*results, strict=True)):
        assert_parity(*values, f"{shown}, {', '.join(arguments)}: result {index}")


@pytest.mark.parametrize("window", [None, (2, 1)])
def test_grouped_heads_whose_batches_are_broadcast(window: tuple[int, int] | None, backend: str) -> None:
    q, k, v = torch.randn(4, 6, 8), torch.randn(3, 2, 6, 8), torch.randn(1, 4, 6, 8)
    found = AF.scaled_dot_product_attention(q, k, v, enable_gqa=True, window=window)
    whole = q.expand(3, -1, -1, -1), k.repeat_interleave(2, 1), v.expand(3, -1, -1, -1)
    seen = reference.band(6, 6, *(window or (-1, -1)), 0, q.device)
    torch.testing.assert_close(found, TF.scaled_dot_product_attention(*whole, seen))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pytorchs_own_samples(dtype: torch.dtype, backend: str) -> None:
    """What PyTorch's tests of its own function give it; dropout, whose numbers are other ones, apart."""
    skip_what_the_kernels_leave(backend, dtype)
    methods = pytest.importorskip("torch.testing._internal.common_methods_invocations", exc_type=ImportError)
    (info,) = (op for op in methods.op_db if op.name == "nn.functional.scaled_dot_product_attention")
    count = 0
    for sample in info.sample_inputs("cpu", dtype):
        arguments = dict(sample.kwargs)
        tensors = [sample.input, *sample.args, *(arguments.pop(n) for n in ("key", "value") if n in arguments)]
        if arguments.get("dropout_p", 0.0) == 0.0:
            output = AF.scaled_dot_product_attention(*tensors, **arguments)
            assert_pytorchs_numbers(tensors, arguments, torch.randn(output.shape))
            count += 1
    assert count > 10


class TestUnusualScales:
    @pytest.mark.parametrize("value_size", [16, 5])
    @pytest.mark.parametrize("dims", [3, 4])
    @pytest.mark.parametrize("kind", ["plain", "causal", "bool", "blind", "float"])
    @pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
    def test_what_pytorch_makes_of_no_number(self, scale: float, kind: str, dims: int, value_size: int) -> None:
        tensors, arguments = self.tensors(dims, value_size), self.arguments(kind) | {"scale": scale}
        gradient = torch.randn(2, 5, value_size).expand(*tensors[0].shape[:-1], -1)
        functions = AF.scaled_dot_product_attention, TF.scaled_dot_product_attention
        found, expected = (every_gradient(partial(f, **arguments), tensors, gradient) for f in functions)
        torch.testing.assert_close(found, expected, equal_nan=True)
        found, expected = (f(*tensors, **arguments) for f in functions)
        torch.testing.assert_close(found, expected, equal_nan=True)

    @pytest.mark.parametrize("dims", [3, 4])
    @pytest.mark.parametrize("kind", ["plain", "causal", "bool", "blind", "float"])
    @pytest.mark.parametrize("scale", [0.0, -2.0, -0.3])
    def test_of_zero_and_below(self, scale: float, kind: str, dims: int, backend: str) -> None:
        """Not every path of PyTorch's gives numbers for it where causality hides keys before they are scaled."""
        tensors, arguments = self.tensors(dims, 16), self.arguments(kind) | {"scale": scale}
        gradient = torch.randn(2, 5, 16).expand(tensors[0].shape)
        with sdpa_kernel(SDPBackend.MATH):
            expected = every_gradient(partial(TF.scaled_dot_product_attention, **arguments), tensors, gradient)
        ours = partial(AF.scaled_dot_product_attention, **arguments)
        torch.testing.assert_close(every_gradient(ours, tensors, gradient), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours(*tensors), expected[0], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("kind", ["plain", "causal", "float"])
    def test_no_number_and_dropout(self, kind: str) -> None:
        for attention in (AF.scaled_dot_product_attention, TF.scaled_dot_product_attention):
            assert attention(*self.tensors(4, 16), dropout_p=0.5, scale=math.nan, **self.arguments(kind)).isnan().all()

    def test_no_number_and_a_window(self, backend: str) -> None:
        assert AF.scaled_dot_product_attention(*self.tensors(4, 16), window=2, scale=math.nan).isnan().all()

    @staticmethod
    def tensors(dims: int, value_size: int) -> list[Tensor]:
        lead = (1, 2)[4 - dims :]
        return [torch.randn(*lead, *rows) for rows in ((5, 16), (7, 16), (7, value_size))]

    @staticmethod
    def arguments(kind: str) -> dict[str, Any]:
        mask = torch.randn(5, 7) if kind == "float" else torch.rand(5, 7) < 0.6
        if mask.dtype == torch.bool:
            mask[2] = kind == "bool"
        return {"is_causal": True} if kind == "causal" else {} if kind == "plain" else {"attn_mask": mask}


@pytest.mark.parametrize("length", [6, 150])
def test_a_mask_and_causality_both_hold(length: int, backend: str) -> None:
    case = Attention(1, 2, length, length, 16, causal=True, mask="bool")
    assert_all_parity(case, case.tensors())
    with torch.no_grad():
        q, k, v = case.tensors()
        mask = MASKS["bool"](case)
        found = AF.scaled_dot_product_attention(q, k, v, mask, is_causal=True)
        torch.testing.assert_close(found, case.expected(q, k, v, mask))


@pytest.mark.parametrize("scale", [0.0, 3.0, -0.5])
def test_scale(scale: float, backend: str) -> None:
    q, k, v = ATTENTIONS[1].tensors()
    found = AF.scaled_dot_product_attention(q, k, v, scale=scale)
    exact = TF.scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=scale)
    assert relative_error(found, exact) < FLOORS[torch.float32]


@pytest.mark.parametrize("mask", [True, False])
def test_queries_that_see_no_key_give_zeros_and_no_gradient(mask: bool, backend: str) -> None:
    q, k, v = (t.requires_grad_() for t in Attention(1, 2, 70, 70, 16).tensors())
    blind = torch.arange(70) % 2 == 0
    hidden = {"attn_mask": ~blind[:, None]} if mask else {"window": 3, "alignment": "upper_left"}
    if not mask:
        k, v = k[:, :, :20], v[:, :, :20]
        blind = torch.arange(70) >= 23
    output = AF.scaled_dot_product_attention(q, k, v, **hidden)
    output.sum().backward()
    assert (output[:, :, blind] == 0).all()
    assert (output[:, :, ~blind] != 0).all()
    assert (q.grad[:, :, blind] == 0).all()


@pytest.mark.parametrize("queries", [1, 70])
def test_nan_in_a_query_stays_in_its_row(queries: int, backend: str) -> None:
    q, k, v = Attention(1, 2, queries, 300, 16).tensors()
    q[0, 0, queries // 2, 3] = math.nan
    output = AF.scaled_dot_product_attention(q, k, v)
    rows = output.isnan().all(-1)
    assert rows[0, 0, queries // 2]
    assert rows.sum() == output.isnan().any(-1).sum() == 1


@pytest.mark.parametrize("queries", [1, 70])
def test_great_scores(queries: int, backend: str) -> None:
    q, k, v = Attention(1, 2, queries, 300, 16).tensors()
    found = AF.scaled_dot_product_attention(q * 1e4, k * 1e3, v)
    exact = TF.scaled_dot_product_attention(q.double() * 1e4, k.double() * 1e3, v.double())
    torch.testing.assert_close(found, exact.float())
    assert AF.scaled_dot_product_attention(q * 1e30, k * 1e30, v).isnan().any()


@pytest.mark.parametrize("queries", [2, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_that_a_mask_fills_with_the_lowest_number_is_even(queries: int, dtype: torch.dtype, backend: str) -> None:
    q, k, v = (t.to(dtype) for t in Attention(1, 2, queries, 300, 16).tensors())
    lowest = torch.finfo(dtype).min
    mask = torch.zeros(queries, 300, dtype=dtype)
    mask[:, 200:] = lowest
    mask[1] = lowest
    found = AF.scaled_dot_product_attention(q, k, v, mask)
    expected = TF.scaled_dot_product_attention(q.double(), k[:, :, :200].double(), v[:, :, :200].double())
    expected[:, :, 1] = v.double().mean(2)
    assert relative_error(found, expected) < FLOORS[dtype]


def test_pytorchs_causal_bias(backend: str) -> None:
    q, k, v = Attention(2, 4, 20, 70, 16).tensors()
    for bias, alignment in ((causal_upper_left, "upper_left"), (causal_lower_right, "lower_right")):
        found = AF.scaled_dot_product_attention(q, k, v, bias(20, 70))
        expected = AF.scaled_dot_product_attention(q, k, v, is_causal=True, alignment=alignment)
        assert type(found) is Tensor
        torch.testing.assert_close(found, expected)


def test_a_mask_of_float32_over_float64() -> None:
    q, k, v = (t.double() for t in Attention(1, 2, 16, 16, 100).tensors())
    mask = torch.randn(16, 16)
    found = AF.scaled_dot_product_attention(q, k, v, mask)
    torch.testing.assert_close(found, TF.scaled_dot_product_attention(q, k, v, mask.double()))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_nested_tensors_are_pytorchs(layout: torch.layout) -> None:
    rows = [torch.randn(2, length, 8) for length in (3, 5)]
    if layout == torch.jagged:
        nested = torch.nested.nested_tensor([row.transpose(0, 1) for row in rows], layout=layout).transpose(1, 2)
    else:
        nested = torch.nested.nested_tensor(rows)
    found = AF.scaled_dot_product_attention(nested, nested, nested)
    for part, row in zip(found.unbind(), rows, strict=True):
        expected = TF.scaled_dot_product_attention(*[row[None]] * 3)[0]
        torch.testing.assert_close(part, expected)
    with pytest.raises(ValueError, match="window=2"):
        AF.scaled_dot_product_attention(nested, nested, nested, window=2)


def test_unlike_numbers_of_key_and_value_heads(backend: str) -> None:
    q, k, _ = Attention(2, 4, 20, 30, 16).tensors()
    v = torch.randn(2, 2, 30, 16)
    found = AF.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    torch.testing.assert_close(found, TF.scaled_dot_product_attention(q, k, v.repeat_interleave(2, 1)))


def test_without_elements_to_compare_every_key_counts_alike(backend: str) -> None:
    q = torch.zeros(2, 2, 3, 0, requires_grad=True)
    v = torch.randn(2, 2, 3, 4, requires_grad=True)
    output = AF.scaled_dot_product_attention(q, q, v)
    torch.testing.assert_close(output, v.mean(2, keepdim=True).expand_as(v))
    output.sum().backward()
    torch.testing.assert_close(v.grad, torch.ones_like(v))


@pytest.mark.parametrize("case", [Attention(2, 2, 64, 64, 64), Attention(2, 2, 16, 100, 64)], ids=str)
def test_double_backward_of_sharp_rows(case: Attention, backend: str) -> None:
    q, k, v = case.tensors()
    assert_all_parity(case, [3 * q, 3 * k, v], compute=double_gradient)


@pytest.mark.parametrize("shape", [(0, 2, 5, 7, 8), (2, 0, 5, 7, 8), (2, 2, 0, 7, 8), (2, 2, 5, 0, 8), (2, 2, 5, 7, 0)])
@pytest.mark.parametrize("precision", ["highest", *PRECISIONS])
@pytest.mark.parametrize("times", [1, 10], ids=["few", "many"])
def test_empty_sizes(shape: tuple[int, ...], precision: str, times: int, backend: str) -> None:
    batch, heads, queries, keys, size = shape
    queries *= times
    q, k = torch.randn(batch, heads, queries, size), torch.randn(batch, heads, keys, size)
    v = torch.randn(batch, heads, keys, 8)
    tensors = [t.requires_grad_() for t in (q, k, v)]
    with float32_precision(precision):
        found = AF.scaled_dot_product_attention(*tensors, scale=1.0)
    expected = TF.scaled_dot_product_attention(*(t.detach() for t in tensors), scale=1.0)
    torch.testing.assert_close(found.detach(), expected, rtol=PRECISIONS.get(precision), atol=PRECISIONS.get(precision))
    found.sum().backward()
    assert all(t.grad.shape == t.shape and not t.grad.isnan().any() for t in tensors)


class TestDropout:
    case = Attention(2, 4, 40, 75, 16, kv_heads=2, causal=True, alignment="lower_right")

    def call(self, *tensors: Tensor, p: float = 0.3, seed: int = 5, **kwargs: Any) -> Tensor:
        arguments = {**self.case.arguments(), "generator": torch.Generator().manual_seed(seed), **kwargs}
        return AF.scaled_dot_product_attention(*tensors, dropout_p=p, **arguments)

    def probabilities(self, **kwargs: Any) -> Tensor:
        torch.manual_seed(1)
        q, k, _ = self.case.tensors()
        v = torch.eye(self.case.keys).expand(2, 2, -1, -1)
        return self.call(q, k, v, **kwargs)

    @needs_native
    @pytest.mark.parametrize("queries", [1, 40])
    def test_numbers_and_gradients_of_the_reference_on_every_level(self, queries: int, isa: str) -> None:
        q, k, v = self.case.tensors()
        gradient = torch.randn(2, 4, queries, 16)

        def compute(backend: str, dtype: torch.dtype) -> list[Tensor]:
            with aigc_fast.backend(backend):
                return every_gradient(self.call, [t.to(dtype) for t in (q[:, :, :queries], k, v)], gradient)

        pairs = zip(compute("cpu", torch.float32), compute("reference", torch.float64), strict=True)
        for ours, exact in pairs:
            assert relative_error(ours, exact) < FLOORS[torch.float32]

    def test_share_and_scale(self, backend: str) -> None:
        plain, dropped = self.probabilities(p=0.0), self.probabilities()
        kept = dropped != 0
        torch.testing.assert_close(dropped[kept], plain[kept] / 0.7)
        assert abs(kept.sum() / (plain != 0).sum() - 0.7) < 0.02

    def test_the_same_seed_repeats_and_another_does_not(self, backend: str) -> None:
        torch.testing.assert_close(self.probabilities(), self.probabilities())
        assert not torch.equal(self.probabilities() == 0, self.probabilities(seed=6) == 0)

    def test_everything_dropped(self, backend: str) -> None:
        assert (self.probabilities(p=1.0) == 0).all()

    def test_torchs_seed(self) -> None:
        tensors, runs = self.case.tensors(), []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            runs.append(self.call(*tensors, generator=None))
        assert torch.equal(runs[0], runs[1])
        assert not torch.equal(runs[0], runs[2])

    def test_double_backward(self, backend: str) -> None:
        tensors, gradient = self.case.tensors(), torch.randn(2, 4, 40, 16)
        found = double_gradient(self.call, tensors, gradient)
        with aigc_fast.backend("reference"):
            exact = double_gradient(self.call, [t.double() for t in tensors], gradient)
        for ours, theirs in zip(found, exact, strict=True):
            assert relative_error(ours, theirs) < 5e-6


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


@pytest.mark.parametrize("case", [FEW[0], FEW[2], FEW[6]], ids=str)
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


def test_reference_and_kernel_give_the_same_logsumexp(backend: str) -> None:
    q, k, v = Attention(1, 2, 50, 60, 16).tensors()
    mask = torch.rand(1, 1, 50, 60).expand(1, 2, -1, -1) < 0.05
    found = ATTENTION(q, k, v, mask, None, 0.0, -1, -1, 0, 0.3)[1]
    scores = (0.3 * q.double() @ k.double().transpose(-2, -1)).masked_fill(~mask, -math.inf)
    torch.testing.assert_close(found, scores.logsumexp(-1).float(), rtol=1e-5, atol=1e-6)


@needs_native
@hypothesis.given(
    st.builds(
        Attention,
        batch=st.integers(1, 2),
        heads=st.sampled_from([2, 4]),
        queries=st.integers(1, 140),
        keys=st.integers(1, 280),
        size=st.integers(1, 70),
        value_size=st.integers(1, 70),
        kv_heads=st.sampled_from([None, 1, 2]),
        causal=st.booleans(),
        window=st.sampled_from([None, 0, 7, (40, None), (3, 60)]),
        alignment=st.sampled_from(["upper_left", "lower_right"]),
        mask=st.sampled_from(sorted(MASKS)),
    )
)
def test_random_calls(case: Attention) -> None:
    torch.manual_seed(0)
    with aigc_fast.backend("cpu"):
        assert_all_parity(case, case.tensors())


@pytest.mark.parametrize(("dims", "dtype"), [(4, torch.float64), (3, torch.float32)])
def test_calls_that_are_pytorchs_compile_whole(dims: int, dtype: torch.dtype) -> None:
    tensors = [tensor[0] if dims == 3 else tensor for tensor in Attention(1, 2, 40, 40, 8).tensors(dtype)]
    compiled = torch.compile(lambda *inputs: AF.scaled_dot_product_attention(*inputs, is_causal=True), fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), TF.scaled_dot_product_attention(*tensors, is_causal=True))


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


@pytest.mark.parametrize("layout", ["plain", "strided"])
@pytest.mark.parametrize("case", WIDE, ids=str)
def test_wide_heads(case: Attention, layout: str) -> None:
    tensors = case.tensors()
    if layout == "strided":
        tensors = [torch.stack([tensor, tensor], -1)[..., 0] for tensor in tensors]
    grouped = case.kv_heads is not None
    found = AF.scaled_dot_product_attention(*tensors, enable_gqa=grouped)
    assert relative_error(found, case.expected(*(t.double() for t in tensors), None)) < FLOORS[torch.float32]


@needs_native
def test_threads_give_the_same_numbers() -> None:
    case = Attention(1, 2, 300, 300, 16, causal=True)
    tensors, gradient = case.tensors(), torch.randn(1, 2, 300, 16)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            with aigc_fast.backend("cpu"):
                runs.append(every_gradient(AF.scaled_dot_product_attention, tensors, gradient))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        torch.testing.assert_close(run, runs[0], rtol=1e-5, atol=1e-6)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, (900, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("keys", [1, 511, 1024, 1500, 5000])
def test_few_queries_have_the_same_bits_on_any_number_of_threads(
    keys: int, window: tuple[int, int] | None, dtype: torch.dtype, isa: str
) -> None:
    """Their keys are cut into parts, which add up to the result."""
    tensors = [torch.randn(2, 3, length, 40).to(dtype) for length in (1, keys, keys)]
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            with aigc_fast.backend("cpu"):
                runs.append(AF.scaled_dot_product_attention(*tensors, window=window, alignment="lower_right"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])
    first = 0 if window is None else max(0, keys - 1 - window[0])
    query, key, value = (tensor.double() for tensor in tensors)
    exact = torch.nn.functional.scaled_dot_product_attention(query, key[:, :, first:], value[:, :, first:])
    assert relative_error(runs[0], exact) < FLOORS[dtype]


def randn(*shape: int, **kwargs: Any) -> Tensor:
    return torch.randn(*shape, **kwargs)


IMPOSSIBLE = {
    "type": (lambda: (randn(1, 2, 5, 8), [1.0], randn(1, 2, 7, 8)), {}, "key is list"),
    "none": (lambda: (randn(1, 2, 5, 8), None, randn(1, 2, 7, 8)), {}, "key is NoneType"),
    "rank": (lambda: (randn(1, 2, 5, 8), randn(8), randn(1, 2, 7, 8)), {}, "key has shape"),
    "rank of query": (lambda: (randn(8), randn(8), randn(8)), {}, "query has shape"),
    "size": (lambda: (randn(1, 2, 5, 8), randn(1, 2, 7, 9), randn(1, 2, 7, 8)), {}, "key has size 9"),
    "length": (lambda: (randn(1, 2, 5, 8), randn(1, 2, 7, 8), randn(1, 2, 6, 8)), {}, "value has length 6"),
    "heads": (lambda: (randn(1, 4, 5, 8), randn(1, 2, 7, 8), randn(1, 2, 7, 8)), {}, "key has 2 heads"),
    "groups": (
        lambda: (randn(1, 4, 5, 8), randn(1, 3, 7, 8), randn(1, 3, 7, 8)),
        {"enable_gqa": True},
        "key has 3 heads",
    ),
    "batch": (lambda: (randn(2, 2, 5, 8), randn(3, 2, 7, 8), randn(3, 2, 7, 8)), {}, "batch"),
    "dtype": (lambda: (randn(1, 2, 5, 8), randn(1, 2, 7, 8).double(), randn(1, 2, 7, 8)), {}, "key has dtype"),
    "integers": (lambda: (torch.ones(1, 2, 5, 8, dtype=torch.int64),) * 3, {}, "query has dtype"),
    "device": (lambda: (randn(1, 2, 5, 8), randn(1, 2, 5, 8, device="meta"), randn(1, 2, 5, 8)), {}, "key is on meta"),
    "mask": (
        lambda: (randn(1, 2, 5, 8),) * 3,
        {"attn_mask": torch.ones(4, 5, dtype=torch.bool)},
        "attn_mask has shape",
    ),
    "mask's dtype": (lambda: (randn(1, 2, 5, 8),) * 3, {"attn_mask": torch.ones(5, 5, dtype=torch.int32)}, "attn_mask"),
    "mask's type": (lambda: (randn(1, 2, 5, 8),) * 3, {"attn_mask": 3}, "attn_mask is int"),
    "dropout": (lambda: (randn(1, 2, 5, 8),) * 3, {"dropout_p": 1.5}, "dropout_p"),
    "window": (lambda: (randn(1, 2, 5, 8),) * 3, {"window": (-1, 3)}, "window"),
    "alignment": (lambda: (randn(1, 2, 5, 8),) * 3, {"alignment": "left"}, "alignment"),
}


@pytest.mark.parametrize("repeats", [1, 40])
@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_bad_arguments_name_the_argument(what: str, repeats: int, backend: str) -> None:
    make, kwargs, named = IMPOSSIBLE[what]
    query, *others = make()
    if query.dim() == 4 and what not in ("device", "mask"):
        query = query.repeat(1, 1, repeats, 1)
    with pytest.raises((ValueError, RuntimeError, TypeError), match=named):
        AF.scaled_dot_product_attention(query, *others, **kwargs)
