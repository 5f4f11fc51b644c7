"""Typical calls: what `explain` and `doctor` show, and tests go through."""

from __future__ import annotations

import torch

from aigc_fast.ops.examples import Examples

EXAMPLES: Examples = {
    "scaled_dot_product_attention": lambda: (
        tuple(torch.zeros(1, 12, 1024, 64) for _ in range(3)),
        {"is_causal": True},
    ),
    "varlen_attn": lambda: (
        (*(torch.zeros(1024, 12, 64) for _ in range(3)), torch.tensor([0, 300, 1024])),
        {"window_size": (-1, 0)},
    ),
}
