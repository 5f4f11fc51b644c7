"""Element types: what the kernels take, and what they compute in."""

from __future__ import annotations

import torch

# The codes of csrc/core/elements.h and csrc/cuda/kernels.h.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
UP_TO_FLOAT32 = (torch.float32, torch.bfloat16, torch.float16)


def computing_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that the numbers are computed in before they are rounded to `dtype`."""
    return dtype if dtype.is_complex or dtype == torch.float64 else torch.float32
