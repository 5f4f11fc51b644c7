"""Where PyTorch's attention is taken by rule, on processors that these tests need not run on."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import aigc_fast
from aigc_fast.ops.attention import choice, varlen


@pytest.mark.parametrize("processor", ["Intel(R) Xeon(R) Processor", "AMD EPYC"])
@pytest.mark.parametrize(("queries", "keys", "size"), [(512, 512, 40), (1, 1024, 64), (512, 512, 64), (1, 128, 64)])
def test_bfloat16_is_left_where_its_pairs_are_slow_alone(
    processor: str, queries: int, keys: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "rounds_natively", lambda: True)
    monkeypatch.setattr(choice, "is_intels", lambda: processor.startswith("Intel"))
    query = torch.empty(1, 8, queries, size, dtype=torch.bfloat16)
    key = value = torch.empty(1, 8, keys, size, dtype=torch.bfloat16)
    uneven_or_many = size == 40 or (queries, keys) == (1, 1024)
    assert choice.is_left(query, key, value) == (uneven_or_many and processor.startswith("Intel"))


def on_a_card(
    groups: int = 4, size: int = 64, value_size: int = 0, step: int = 1, dtype: torch.dtype = torch.bfloat16
) -> list[Tensor]:
    """Query, key and value, of which elements of a row lie `step` apart."""
    shapes = (9, 4, size), (9, groups, size), (9, groups, value_size or size)
    with FakeTensorMode():
        return [
            torch.empty_strided(
                (rows, heads, size), (heads * size * step, size * step, step), dtype=dtype, device="cuda"
            )
            for rows, heads, size in shapes
        ]


@pytest.fixture
def their_varlen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The calls of a function that stands for PyTorch's, on a card that is new enough."""
    calls = []

    def varlen_attn(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *bounds: Any,
        scale: float,
        window_size: Any,
        enable_gqa: bool = False,
    ) -> Tensor:
        calls.append((*bounds, scale, window_size, enable_gqa))
        return query

    module = ModuleType("torch.nn.attention.varlen")
    module.varlen_attn = varlen_attn
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(choice, "pytorchs_varlen", choice.pytorchs_varlen.__wrapped__)
    monkeypatch.setattr(varlen, "pytorchs_varlen", choice.pytorchs_varlen)
    monkeypatch.setattr(choice.devices, "too_old_for_triton", lambda ordinal: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return calls


def test_various_lengths_in_16_bits_on_a_card_are_pytorchs(
    their_varlen: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for made in ({}, {"groups": 2}, {"size": 256}, {"dtype": torch.float16}):
        assert "PyTorch's own kernel" in choice.leave_varlen(*on_a_card(**made), 0.1, True)
    for made in ({"size": 264}, {"size": 68}, {"value_size": 56}, {"step": 2}, {"dtype": torch.float32}):
        assert choice.leave_varlen(*on_a_card(**made), 0.1, True) is None
    tensors = on_a_card()
    for scale, is_plain in ((-0.1, True), (torch.inf, True), (0.1, False)):
        assert choice.leave_varlen(*tensors, scale, is_plain) is None
    with aigc_fast.backend("triton"):
        assert choice.leave_varlen(*tensors, 0.1, True) is None
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choice.leave_varlen(*tensors, 0.1, True) is None


def test_a_torch_that_lacks_what_is_wanted_is_asked_for_nothing(
    their_varlen: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["torch.nn.attention.varlen"]
    module.varlen_attn = lambda query, *rest, scale, window_size: query
    assert choice.leave_varlen(*on_a_card(), 0.1, True) is not None
    assert choice.leave_varlen(*on_a_card(groups=2), 0.1, True) is None
    module.varlen_attn = lambda query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False: query
    assert choice.leave_varlen(*on_a_card(), 0.1, True) is None
    monkeypatch.setitem(sys.modules, module.__name__, None)
    assert choice.leave_varlen(*on_a_card(), 0.1, True) is None


@pytest.mark.parametrize("groups", [2, 4])
def test_pytorchs_kernel_is_told_the_greatest_lengths(
    groups: int, their_varlen: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(varlen, "leave_varlen", lambda *args: "on a card")
    query, key = torch.randn(9, 4, 8), torch.randn(7, groups, 8)
    of_queries, of_keys = torch.tensor([0, 2, 2, 9]), torch.tensor([0, 1, 5, 7])
    call = {"window_size": (-1, 0), "enable_gqa": groups < 4}
    assert varlen.varlen_attn(query, key, key, of_queries, of_keys, **call) is query
    ((cu_seq_q, cu_seq_k, *rest),) = their_varlen
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert (cu_seq_q.tolist(), cu_seq_k.tolist()) == ([0, 2, 2, 9], [0, 1, 5, 7])
    assert rest == [7, 4, 8**-0.5, (-1, 0), groups < 4]
    with pytest.raises(
        RuntimeError, match=r"cu_seq_k is \[0, 1, 5, 8\]: expected to rise from 0 to the total length, 7"
    ):
        varlen.varlen_attn(query, key, key, of_queries, torch.tensor([0, 1, 5, 8]), **call)
