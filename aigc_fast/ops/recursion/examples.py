"""Typical calls: what `explain` and `doctor` show, and tests go through."""

from __future__ import annotations

import torch

from aigc_fast.ops.examples import Examples

EXAMPLES: Examples = {
    "ar_recursion": lambda: ((torch.zeros(64, 16_000), torch.zeros(10)), {}),
    "sample_wise_lpc": lambda: ((torch.zeros(8, 48_000), torch.zeros(8, 48_000, 22)), {}),
    "lfilter": lambda: ((torch.zeros(2, 48_000), torch.ones(3), torch.ones(3)), {}),
}
