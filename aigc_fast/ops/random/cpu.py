"""The native kernels of csrc/cpu/random.cpp."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from aigc_fast import _native

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}


def unsupported(tensor: Tensor, dtype: torch.dtype, dtypes: Sequence[torch.dtype]) -> str | None:
    """Why the native library can't compute on this tensor's device in this dtype, or None."""
    if tensor.device.type != "cpu":
        return f"the tensors are on {tensor.device}"
    if dtype not in dtypes:
        return f"{dtype} is computed by the reference"
    return _native.cpu_reason()


_FILLED = (torch.float32, torch.bfloat16, torch.float16)


def normal_unsupported(size: Sequence[int], key: Tensor, dtype: torch.dtype) -> str | None:
    return unsupported(key, dtype, _FILLED)


uniform_unsupported = normal_unsupported


def dropout_unsupported(input: Tensor, key: Tensor, p: float) -> str | None:
    return unsupported(input, input.dtype, tuple(DTYPES))


def normal(size: Sequence[int], key: Tensor, dtype: torch.dtype) -> Tensor:
    out = torch.empty(size, dtype=dtype)
    _native.cpu.kernels.normal(out.data_ptr(), math.prod(size), DTYPES[dtype], key.contiguous().data_ptr())
    return out


def uniform(size: Sequence[int], key: Tensor, dtype: torch.dtype) -> Tensor:
    out = torch.empty(size, dtype=dtype)
    _native.cpu.kernels.uniform(out.data_ptr(), math.prod(size), DTYPES[dtype], key.contiguous().data_ptr())
    return out


def dropout(input: Tensor, key: Tensor, p: float) -> Tensor:
    out = torch.empty_like(input)
    if not input.is_contiguous():
        return out.copy_(dropout(input.contiguous(), key, p))
    _native.cpu.kernels.dropout(
        out.data_ptr(), input.data_ptr(), input.numel(), DTYPES[input.dtype], key.contiguous().data_ptr(), p
    )
    return out
