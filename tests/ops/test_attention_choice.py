"""Where PyTorch's attention is taken by rule, on processors that these tests need not run on."""

from __future__ import annotations

import pytest
import torch

from aigc_fast.ops.attention import choice


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
