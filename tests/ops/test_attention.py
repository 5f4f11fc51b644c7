"""scaled_dot_product_attention against PyTorch in float64: layouts, masks, scales, dropout, wide heads, threads."""

from __future__ import annotations

import math
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as TF
from attention_cases import ATTENTIONS, FEW_ATTENTIONS, MASKS, Attention
from attention_checks import LAYOUTS, assert_all_parity, double_gradient, every_gradient, needs_native
from parity import DTYPES, FLOORS, relative_error
from torch import Tensor

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.ops.attention.operators import ATTENTION

WIDE = [Attention(1, 4, 130, 90, 100), Attention(2, 4, 64, 64, 192, kv_heads=2), Attention(1, 2, 70, 60, 128)]


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp64"])
@pytest.mark.parametrize("case", FEW_ATTENTIONS, ids=str)
def test_dtypes(case: Attention, dtype: str) -> None:
    assert_all_parity(case, case.tensors(DTYPES[dtype]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", FEW_ATTENTIONS, ids=str)
def test_layouts(case: Attention, layout: str, backend: str) -> None:
    def ours(*tensors: Tensor, **arguments: Any) -> Tensor:
        return AF.scaled_dot_product_attention(*(LAYOUTS[layout](tensor) for tensor in tensors), **arguments)

    assert_all_parity(case, case.tensors(), ours=ours)


@needs_native
def test_heads_after_lengths_are_neither_copied_nor_reordered() -> None:
    q, k, v = (torch.randn(2, 50, 4, 16).transpose(1, 2) for _ in range(3))
    with aigc_fast.backend("cpu"):
        assert AF.scaled_dot_product_attention(q, k, v).stride() == q.stride()


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


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_compiles_whole(dtype: torch.dtype, size: int) -> None:
    tensors = Attention(1, 2, 33, 40, size).tensors(dtype)
    compiled = torch.compile(AF.scaled_dot_product_attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), AF.scaled_dot_product_attention(*tensors))


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
