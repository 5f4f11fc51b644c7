"""Calls of this op's functions: what `explain` and `doctor` show, the bench measures, and tests go through."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast.ops.examples import Call, Example, Examples, Form, given


def _sequences(query: Tensor, key: Tensor, value: Tensor) -> Call:
    """Two sequences of various lengths, each token of which sees a few before it."""
    tokens = query.shape[0]
    return (query, key, value, torch.tensor([0, tokens // 2, tokens], device=query.device)), {"window_size": (3, 0)}


EXAMPLES: Examples = {
    "scaled_dot_product_attention": Example(
        given(*[(1, 12, 1024, 64)] * 3, is_causal=True), given(*[(2, 4, 9, 8)] * 3, is_causal=True, window=5)
    ),
    "varlen_attn": Example(
        Form(
            ((1024, 12, 64),) * 3,
            lambda *tensors: ((*tensors, torch.tensor([0, 300, 1024])), {"window_size": (-1, 0)}),
        ),
        Form(((9, 4, 8),) * 3, _sequences),
    ),
}
