"""Element types: what the kernels take, and what they compute in."""

from __future__ import annotations

import torch

from aigc_fast.runtime import native

_CODED = torch.float32, torch.bfloat16, torch.float16, torch.float64
DTYPES = dict(zip(_CODED, native.codes("dtypes", "FLOAT32", "BFLOAT16", "FLOAT16", "FLOAT64"), strict=True))
UP_TO_FLOAT32 = (torch.float32, torch.bfloat16, torch.float16)


def computing_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that the numbers are computed in before they are rounded to `dtype`."""
    return dtype if dtype.is_complex or dtype == torch.float64 else torch.float32
