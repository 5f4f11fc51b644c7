"""Attention's Triton kernels in the interpreter: blocks and tiles, parts of the keys, what is skipped, the noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from attention_cases import Attention, Batch
from attention_checks import LAYOUTS, double_gradient, every_gradient
from parity import relative_error
from places import INTERPRETER
from torch import Tensor
from watching import INTERPRETED, launches

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.ops.attention import choice, reference
from aigc_fast.ops.attention.operators import ATTENTION, VARLEN
from aigc_fast.runtime import devices
from aigc_fast.runtime.backends import BackendError

needs_interpreter = pytest.mark.skipif(not INTERPRETED, reason="TRITON_INTERPRET=1 is not set")


@pytest.fixture
def interpreter() -> Iterator[None]:
    with INTERPRETER.in_force():
        yield


def with_reference(function: Callable[..., Any], *args: Any) -> Any:
    with aigc_fast.backend("reference"):
        return function(*args)


def check(case: Attention, dtype: torch.dtype = torch.float32, lay: Callable[[Tensor], Tensor] = lambda t: t) -> None:
    """Output and gradients of a case against float64."""
    arguments, tensors = case.arguments(), case.tensors(dtype)
    gradient = torch.randn(*tensors[0].shape[:3], tensors[2].shape[3]).to(dtype)

    def ours(*inputs: Tensor) -> Tensor:
        return AF.scaled_dot_product_attention(*inputs, **arguments)

    found = every_gradient(ours, [lay(tensor) for tensor in tensors], gradient)
    mask = arguments["attn_mask"]
    exact = every_gradient(lambda *inputs: case.expected(*inputs, mask), [t.double() for t in tensors], gradient)
    for ours_of, wanted in zip(found, exact, strict=True):
        assert relative_error(ours_of, wanted) < INTERPRETER.floor(dtype), str(case)


CASES = [
    Attention(1, 1, 1, 2, 3, value_size=17),
    Attention(1, 2, 37, 35, 33, causal=True),
    Attention(1, 2, 3, 130, 8, causal=True, alignment="lower_right"),
    Attention(2, 4, 20, 33, 16, kv_heads=2, window=(9, 4)),
    Attention(1, 1, 40, 20, 16, window=(None, 5), alignment="lower_right"),
    Attention(1, 1, 70, 50, 48, window=(0, 3)),
    Attention(1, 4, 19, 33, 16, kv_heads=2, mask="bool"),
    Attention(2, 1, 35, 33, 5, mask="padding, expanded"),
    Attention(1, 2, 36, 33, 16, mask="blind", causal=True),
    Attention(1, 1, 70, 60, 16, mask="blocks"),
    Attention(1, 2, 35, 33, 16, mask="float, -inf", window=20),
    Attention(1, 3, 1, 90, 17, value_size=5, kv_heads=1, mask="padding"),
    Attention(1, 4, 1, 100, 16, kv_heads=1, window=(60, 0), alignment="lower_right", mask="float row"),
]


@needs_interpreter
@pytest.mark.parametrize("case", CASES, ids=str)
def test_interpreted_values_and_gradients(case: Attention, interpreter: None) -> None:
    check(case)


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", [CASES[i] for i in (2, 3, 10)], ids=str)
def test_interpreted_16_bits(case: Attention, dtype: torch.dtype, interpreter: None) -> None:
    check(case, dtype)


@needs_interpreter
@pytest.mark.parametrize("layout", LAYOUTS)
def test_interpreted_layouts(layout: str, interpreter: None) -> None:
    check(Attention(2, 4, 9, 20, 16, kv_heads=2, causal=True), lay=LAYOUTS[layout])


@needs_interpreter
@pytest.mark.parametrize("mask", ["none", "blind"])
def test_interpreted_parts_of_the_keys_are_put_together(mask: str, interpreter: None) -> None:
    case = Attention(1, 4, 4, 400, 24, kv_heads=2, causal=True, alignment="lower_right", mask=mask)
    arguments, tensors = case.arguments(), case.tensors()
    with launches() as launched:
        found = AF.scaled_dot_product_attention(*tensors, **arguments)
    assert launched == ["triton:forward", "triton:combine"]
    exact = case.expected(*(tensor.double() for tensor in tensors), arguments["attn_mask"])
    assert relative_error(found, exact) < INTERPRETER.floor(torch.float32)


@needs_interpreter
def test_interpreted_log_sum_exp(interpreter: None) -> None:
    q, k, v = Attention(1, 2, 20, 60, 16).tensors()
    mask = torch.rand(1, 1, 20, 60).expand(1, 2, -1, -1) < 0.05
    found = ATTENTION(q, k, v, mask, None, 0.0, -1, -1, 0, 0.3)[1]
    scores = (0.3 * q.double() @ k.double().mT).masked_fill(~mask, -math.inf)
    torch.testing.assert_close(found, scores.logsumexp(-1).float(), rtol=1e-5, atol=1e-6)
    assert found.isinf().any()


@needs_interpreter
@pytest.mark.parametrize("hidden", ["window", "mask"])
def test_interpreted_hidden_tiles_are_not_read(hidden: str, interpreter: None) -> None:
    case = Attention(1, 1, 140, 140, 16, window=(0, 0) if hidden == "window" else None)
    mask = torch.eye(140, dtype=torch.bool) if hidden == "mask" else None
    # What is far from the first queries: NaN in a key or a value that is read reaches every row of its tile's product.
    tensors = case.tensors()
    for tensor in tensors:
        tensor[:, :, 100:] = math.nan
    gradient = torch.randn(1, 1, 140, 16)
    gradient[:, :, 100:] = math.nan
    found = every_gradient(
        lambda *inputs: AF.scaled_dot_product_attention(*inputs, mask, window=case.window), tensors, gradient
    )
    for result in found:
        assert result[:, :, :64].isfinite().all()
        assert result[:, :, 100:].isnan().all()


@needs_interpreter
def test_interpreted_queries_that_see_no_key_give_zeros_and_no_gradient(interpreter: None) -> None:
    q, k, v = (t.requires_grad_() for t in Attention(1, 2, 20, 7, 16).tensors())
    output = AF.scaled_dot_product_attention(q, k, v, window=3, alignment="upper_left")
    output.sum().backward()
    assert (output[:, :, 10:] == 0).all()
    assert (q.grad[:, :, 10:] == 0).all()
    assert (output[:, :, :10] != 0).all()


@needs_interpreter
@pytest.mark.filterwarnings("ignore:All-NaN slice encountered")
def test_interpreted_nan_and_the_lowest_number(interpreter: None) -> None:
    q, k, v = Attention(1, 2, 5, 70, 16).tensors()
    mask = torch.zeros(5, 70)
    mask[1] = torch.finfo(torch.float32).min
    q[0, 0, 3, 2] = math.nan
    output = AF.scaled_dot_product_attention(q, k, v, mask)
    assert output[0, 0, 3].isnan().all()
    assert output.isnan().sum() == 16
    torch.testing.assert_close(output[:, :, 1], v.mean(2))


class TestDropout:
    """The noise is the reference's, element by element."""

    def drop(self, queries: int, keys: int, key: Tensor, **kwargs: Any) -> Tensor:
        q, k, _ = Attention(2, 4, queries, keys, 8, kv_heads=2).tensors()
        v = torch.eye(keys).expand(2, 2, -1, -1)
        return ATTENTION(q, k, v, None, key, 0.3, -1, 0, keys - queries, 0.4)[0]

    @needs_interpreter
    @pytest.mark.parametrize(("queries", "keys"), [(40, 72), (3, 75), (1, 130), (17, 13)])
    def test_interpreted_numbers_are_the_references(self, queries: int, keys: int, interpreter: None) -> None:
        key = torch.tensor([5, 2**32 - 3])
        torch.manual_seed(1)
        found = self.drop(queries, keys, key)
        torch.manual_seed(1)
        expected = with_reference(self.drop, queries, keys, key)
        assert torch.equal(found == 0, expected == 0)
        assert relative_error(found, expected) < INTERPRETER.floor(torch.float32)

    @needs_interpreter
    @pytest.mark.parametrize("keys", [36, 35])
    def test_interpreted_gradients(self, keys: int, interpreter: None) -> None:
        tensors = Attention(1, 4, 20, keys, 16, kv_heads=2).tensors()
        gradient = torch.randn(1, 4, 20, 16)

        def call(*inputs: Tensor) -> Tensor:
            source = torch.Generator().manual_seed(5)
            return AF.scaled_dot_product_attention(
                *inputs, dropout_p=0.3, is_causal=True, enable_gqa=True, generator=source
            )

        found = every_gradient(call, tensors, gradient)
        exact = with_reference(every_gradient, call, [tensor.double() for tensor in tensors], gradient)
        for ours, wanted in zip(found, exact, strict=True):
            assert relative_error(ours, wanted) < INTERPRETER.floor(torch.float32)

    @needs_interpreter
    def test_interpreted_sequences_have_noise_of_their_own(self, interpreter: None) -> None:
        q, k, v = torch.randn(12, 2, 8), torch.randn(12, 2, 8), torch.randn(12, 2, 12)
        bounds = torch.tensor([0, 5, 5, 12])
        rest = bounds, bounds, torch.tensor([7, 9]), 0.4, -1, -1, 0.3, 0, None, None
        found, expected = VARLEN(q, k, v, *rest)[0], with_reference(VARLEN, q, k, v, *rest)[0]
        assert relative_error(found, expected) < INTERPRETER.floor(torch.float32)

    @needs_interpreter
    def test_interpreted_everything_dropped(self, interpreter: None) -> None:
        q, k, v = Attention(1, 1, 3, 5, 8).tensors()
        assert (ATTENTION(q, k, v, None, torch.tensor([1, 2]), 1.0, -1, -1, 0, 0.3)[0] == 0).all()


@needs_interpreter
@pytest.mark.parametrize("case", [CASES[3], Attention(1, 2, 9, 20, 16, mask="blind")], ids=str)
def test_interpreted_double_backward(case: Attention, interpreter: None) -> None:
    tensors, arguments, gradient = (
        case.tensors(),
        case.arguments(),
        torch.randn(case.batch, case.heads, case.queries, 16),
    )

    def call(*inputs: Tensor) -> Tensor:
        return AF.scaled_dot_product_attention(*inputs, **arguments)

    found = double_gradient(call, tensors, gradient)
    exact = with_reference(double_gradient, call, [tensor.double() for tensor in tensors], gradient)
    for ours, wanted in zip(found, exact, strict=True):
        assert relative_error(ours, wanted) < 5e-6


BATCHES = [
    Batch((5, 0, 40, 1), (5, 0, 40, 1), 1, 1, window=(-1, 0)),
    Batch((1, 4), (70, 9), heads=6, window=(-1, 0)),
    Batch((20, 3), (10, 60), heads=4, size=24, value_size=40, window=(30, 5)),
]


@needs_interpreter
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_interpreted_sequences_of_various_lengths(batch: Batch, interpreter: None) -> None:
    tensors = batch.tensors()
    gradient = torch.randn(sum(batch.queries), batch.heads, batch.value_size)
    found = every_gradient(batch.ours, tensors, gradient)
    exact = every_gradient(batch.expected, [tensor.double() for tensor in tensors], gradient)
    for ours, wanted in zip(found, exact, strict=True):
        assert relative_error(ours, wanted) < INTERPRETER.floor(torch.float32)


@needs_interpreter
def test_interpreted_a_sequence_has_the_same_bits_beside_others_without_splits(interpreter: None) -> None:
    q, k, v = torch.randn(40, 2, 16), torch.randn(200, 2, 16), torch.randn(200, 2, 16)
    alone = AF.varlen_attn(q[:1], k[:150], v[:150], torch.tensor([0, 1]), torch.tensor([0, 150]), num_splits=1)
    bounds = torch.tensor([0, 1, 40]), torch.tensor([0, 150, 200])
    assert torch.equal(AF.varlen_attn(q, k, v, *bounds, num_splits=1)[:1], alone)


@needs_interpreter
def test_interpreted_pages(interpreter: None) -> None:
    pages, table = torch.randn(5, 4, 2, 16), torch.tensor([[3, 1], [0, 4]])
    query, used = torch.randn(3, 2, 16), torch.tensor([6, 3])
    args = query, pages, pages, torch.tensor([0, 2, 3]), None, 2, 8
    options = {"seqused_k": used, "block_table": table, "window_size": (-1, 0)}
    found = AF.varlen_attn(*args, **options)
    expected = with_reference(lambda: AF.varlen_attn(*args, **options))
    assert relative_error(found, expected) < INTERPRETER.floor(torch.float32)


@needs_interpreter
def test_interpreted_bounds_are_checked(interpreter: None) -> None:
    tensors = [torch.randn(4, 2, 8)] * 3
    with pytest.raises(RuntimeError, match=r"cu_seq_q is \[0, 9\]: expected to rise from 0 to the total length, 4"):
        AF.varlen_attn(*tensors, torch.tensor([0, 9]))


@needs_interpreter
@pytest.mark.parametrize("shape", [(0, 2, 5, 7, 8), (2, 0, 5, 7, 8), (2, 2, 0, 7, 8), (2, 2, 5, 0, 8), (2, 2, 5, 7, 0)])
def test_interpreted_empty_sizes(shape: tuple[int, ...], interpreter: None) -> None:
    batch, heads, queries, keys, size = shape
    q, k = torch.randn(batch, heads, queries, size), torch.randn(batch, heads, keys, size)
    v = torch.randn(batch, heads, keys, 3)
    found = every_gradient(AF.scaled_dot_product_attention, [q, k, v], torch.randn(batch, heads, queries, 3))
    expected = with_reference(
        every_gradient, AF.scaled_dot_product_attention, [q, k, v], torch.zeros(batch, heads, queries, 3)
    )
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in expected]
    torch.testing.assert_close(found[0], expected[0])


@needs_interpreter
@pytest.mark.parametrize(
    ("size", "dtype", "reason"),
    [
        (257, torch.float32, "heads of 257 numbers: Triton's kernels take up to 256"),
        (8, torch.float64, "torch.float64 is computed by the reference"),
    ],
)
def test_interpreted_what_the_kernels_do_not_take(
    size: int, dtype: torch.dtype, reason: str, interpreter: None
) -> None:
    query = torch.randn(1, 1, 2, size, dtype=dtype)
    with pytest.raises(BackendError, match=f"triton: {reason}"):
        AF.scaled_dot_product_attention(query, query, query)


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("sizes", [(80, 80), (200, 130)])
def test_interpreted_wide_heads(sizes: tuple[int, int], dtype: torch.dtype, interpreter: None) -> None:
    check(Attention(1, 2, 20, 40, sizes[0], value_size=sizes[1], causal=True), dtype)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes tensors of any device")
@pytest.mark.parametrize(
    ("band", "is_pytorchs"),
    [
        ((-1, -1, 0), True),
        ((-1, 0, 0), True),
        # A single query at the last key sees them all.
        ((-1, 0, 9), True),
        ((3, 0, 0), False),
        ((-1, 2, 0), False),
        ((-1, 0, 4), False),
    ],
)
def test_elsewhere_what_pytorch_has_no_kernel_for_is_tritons(
    band: tuple[int, int, int], is_pytorchs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = [torch.empty(1, 2, 10, 8, device="meta")] * 3
    rest = None, 0.0, band, True, False
    assert "PyTorch's own kernels compute there" in choice.leave(*tensors, *rest)
    monkeypatch.setattr(devices, "triton", lambda *args: None)
    assert (choice.leave(*tensors, *rest) is not None) == is_pytorchs


def test_the_reference_and_choice_agree_on_which_bands_hide_nothing() -> None:
    for offset in range(-3, 8):
        for right in (-1, 0, 4, 9):
            hides = reference.band(1, 8, -1, right, offset, torch.device("cpu"))
            nothing = hides is None or bool(hides.all())
            assert choice._is_narrow(-1, right, offset, 8) == (not nothing and (right, offset) != (0, 0))
