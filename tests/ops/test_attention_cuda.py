"""The CUDA kernel of attention for few queries, as the CPU emulates it: tiles, parts of the keys, heads that share."""

from __future__ import annotations

import math

import pytest
import torch
from attention_cases import Attention
from attention_checks import LAYOUTS
from memory import far_apart
from parity import relative_error
from places import EMULATOR, Place
from torch import Tensor
from watching import launches

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.ops.attention import choice, cuda
from aigc_fast.ops.attention.operators import ATTENTION
from aigc_fast.runtime import devices, native
from aigc_fast.runtime.backends import BackendError
from aigc_fast.runtime.dtypes import UP_TO_FLOAT32

needs_emulation = pytest.mark.skipif(
    not native.is_emulated or native.cuda is None, reason="AIGC_FAST_CUDA_HOST=1 is not set"
)
IN_ORDERS = pytest.mark.parametrize("place", EMULATOR, ids=str)

CASES = [
    Attention(1, 1, 1, 1, 1),
    Attention(2, 8, 3, 130, 24, kv_heads=2, causal=True, alignment="lower_right"),
    # More rows than a block takes.
    Attention(1, 20, 3, 70, 40, kv_heads=2),
    Attention(1, 16, 1, 300, 80, kv_heads=1, window=(60, 0), alignment="lower_right", mask="float row"),
    Attention(1, 2, 16, 40, 48, window=(0, 3), mask="bool"),
    Attention(2, 4, 9, 60, 100, value_size=36, kv_heads=2, mask="padding"),
    Attention(1, 2, 9, 140, 128, mask="blind"),
    Attention(1, 2, 5, 90, 200, value_size=256, mask="strided"),
    Attention(1, 3, 5, 33, 7, value_size=19, mask="float, -inf"),
]


def check(case: Attention, tensors: list[Tensor], place: Place) -> None:
    arguments, dtype = case.arguments(), tensors[0].dtype
    with place.in_force(), launches("cuda:attention_few_queries") as launched:
        found = AF.scaled_dot_product_attention(*tensors, **arguments)
    exact = case.expected(*(tensor.double() for tensor in tensors), arguments["attn_mask"])
    assert relative_error(found, exact) < place.floor(dtype), str(case)
    assert launched


@needs_emulation
@IN_ORDERS
@pytest.mark.parametrize("dtype", UP_TO_FLOAT32)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_emulated_values(case: Attention, dtype: torch.dtype, place: Place) -> None:
    check(case, case.tensors(dtype), place)


@needs_emulation
@IN_ORDERS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_emulated_layouts(layout: str, dtype: torch.dtype, place: Place) -> None:
    case = Attention(2, 4, 3, 70, 16, kv_heads=2, causal=True, alignment="lower_right")
    check(case, [LAYOUTS[layout](tensor) for tensor in case.tensors(dtype)], place)


@needs_emulation
@pytest.mark.parametrize("dtype", UP_TO_FLOAT32)
def test_emulated_parts_and_orders_of_threads_give_the_same_bits(dtype: torch.dtype) -> None:
    case = Attention(1, 4, 2, 900, 64, kv_heads=2, mask="bool")
    tensors, arguments, found = case.tensors(dtype), case.arguments(), []
    for place in EMULATOR:
        with place.in_force():
            found.append(AF.scaled_dot_product_attention(*tensors, **arguments))
            assert native.cuda.last_launch()["kernel"] == "attention_few_queries' parts"
    assert all(torch.equal(other, found[0]) for other in found[1:])


@needs_emulation
@pytest.mark.parametrize("keys", [60, 700])
def test_emulated_log_sum_exp(keys: int) -> None:
    q, k, v = Attention(1, 2, 7, keys, 16).tensors()
    mask = torch.rand(1, 1, 7, keys) < 0.05
    mask[:, :, 3] = False
    with aigc_fast.backend("cuda"):
        found = ATTENTION(q, k, v, mask.expand(1, 2, -1, -1), None, 0.0, -1, -1, 0, 0.3)[1]
    scores = (0.3 * q.double() @ k.double().mT).masked_fill(~mask, -math.inf)
    torch.testing.assert_close(found, scores.logsumexp(-1).float(), rtol=1e-5, atol=1e-6)
    assert found[:, :, 3].isinf().all()


@needs_emulation
@pytest.mark.parametrize("hidden", ["window", "mask"])
def test_emulated_hidden_tiles_are_not_read(hidden: str) -> None:
    q, k, v = Attention(1, 2, 3, 200, 16).tensors()
    for tensor in (k, v):
        tensor[:, :, 48:] = math.nan
    mask = torch.arange(200) < 40 if hidden == "mask" else None
    window = (0, 30) if hidden == "window" else None
    with aigc_fast.backend("cuda"):
        found = AF.scaled_dot_product_attention(q, k, v, mask, window=window)
    assert found.isfinite().all()


@needs_emulation
def test_emulated_nan_and_the_lowest_number() -> None:
    q, k, v = Attention(1, 2, 5, 70, 16).tensors()
    mask = torch.zeros(5, 70)
    mask[1] = torch.finfo(torch.float32).min
    q[0, 0, 3, 2] = math.nan
    with aigc_fast.backend("cuda"):
        output = AF.scaled_dot_product_attention(q, k, v, mask)
    assert output[0, 0, 3].isnan().all()
    assert output.isnan().sum() == 16
    torch.testing.assert_close(output[:, :, 1], v.mean(2))


@needs_emulation
@pytest.mark.parametrize("which", ["key", "value", "mask"])
def test_emulated_offsets_beyond_32_bits(which: str) -> None:
    q, k, v, mask = torch.randn(1, 2, 2, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 2, 9)
    apart = far_apart(2, *((2, 9) if which == "mask" else (9, 8)), step=2**31 + 4)[None]
    k, v, mask = (apart if name == which else own for name, own in (("key", k), ("value", v), ("mask", mask)))
    with aigc_fast.backend("cuda"):
        found = AF.scaled_dot_product_attention(q, k, v, mask)
    exact = torch.nn.functional.scaled_dot_product_attention(*(t.double() for t in (q, k, v, mask)))
    assert relative_error(found, exact) < 1e-6


@needs_emulation
@pytest.mark.parametrize(
    ("queries", "size", "dtype", "reason"),
    [
        (17, 8, torch.float32, "17 queries: the kernel takes up to 16"),
        (2, 257, torch.float32, "heads of 257 numbers: the kernel takes up to 256"),
        (2, 8, torch.float64, "torch.float64 is computed by the reference"),
    ],
)
def test_emulated_what_the_kernel_does_not_take(queries: int, size: int, dtype: torch.dtype, reason: str) -> None:
    query = torch.randn(1, 1, queries, size, dtype=dtype)
    with aigc_fast.backend("cuda"), pytest.raises(BackendError, match=f"cuda: {reason}"):
        AF.scaled_dot_product_attention(query, query, query)


@needs_emulation
def test_emulated_dropout_is_not_the_kernels() -> None:
    query, source = torch.randn(1, 1, 2, 8), torch.Generator()
    with aigc_fast.backend("cuda"), pytest.raises(BackendError, match="cuda: dropout: the kernel for few queries has"):
        AF.scaled_dot_product_attention(query, query, query, dropout_p=0.5, generator=source)


@needs_emulation
def test_emulated_sizes_of_zero() -> None:
    for shape in ((0, 2, 3, 8), (1, 2, 0, 8)):
        q = torch.randn(shape)
        with aigc_fast.backend("cuda"):
            assert AF.scaled_dot_product_attention(q, q, q).shape == shape
    q, k = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 0, 8)
    with aigc_fast.backend("cuda"):
        assert (AF.scaled_dot_product_attention(q, k, k) == 0).all()


def test_few_queries_under_a_window_are_the_kernels_where_triton_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = torch.empty(1, 2, 1, 8, device="meta"), torch.empty(1, 2, 90, 8, device="meta")
    tensors, window = (query, key, key), (20, 0, 89)
    monkeypatch.setattr(devices, "triton", lambda *args: "not there")
    monkeypatch.setattr(devices, "cuda", lambda *args: None)
    assert choice.leave(*tensors, None, 0.0, window, True, False) is None
    for rest in ((None, 0.5, window), (None, 0.0, (-1, 0, 89))):
        assert "PyTorch's own kernels compute there" in choice.leave(*tensors, *rest, True, False)
    many = torch.empty(1, 2, cuda.MOST_QUERIES + 1, 8, device="meta")
    assert choice.leave(many, key, key, None, 0.0, window, True, False) is not None
