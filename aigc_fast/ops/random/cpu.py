"""The native kernels of csrc/cpu/random.cpp."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from aigc_fast import _native
from aigc_fast.ops import support
from aigc_fast.ops.support import DTYPES, UP_TO_FLOAT32

_ANY_DTYPE = tuple(DTYPES)


def normal_unsupported(size: Sequence[int], key: Tensor, dtype: torch.dtype) -> support.Reason:
    """Why this backend cannot draw these uniforms or normals, or None."""
    return support.cpu(key, dtype, UP_TO_FLOAT32)


uniform_unsupported = normal_unsupported


def dropout_unsupported(input: Tensor, key: Tensor, p: float) -> support.Reason:
    """Why this backend cannot drop out of this input, or None."""
    return support.cpu(input, input.dtype, _ANY_DTYPE)


def normal(size: Sequence[int], key: Tensor, dtype: torch.dtype) -> Tensor:
    """Standard normals of `size` from the key; see `reference.normal`."""
    out = torch.empty(size, dtype=dtype)
    _native.cpu.kernels.normal(out.data_ptr(), math.prod(size), DTYPES[dtype], key.contiguous().data_ptr())
    return out


def uniform(size: Sequence[int], key: Tensor, dtype: torch.dtype) -> Tensor:
    """Uniforms in [0, 1) of `size` from the key; see `reference.uniform`."""
    out = torch.empty(size, dtype=dtype)
    _native.cpu.kernels.uniform(out.data_ptr(), math.prod(size), DTYPES[dtype], key.contiguous().data_ptr())
    return out


def dropout(input: Tensor, key: Tensor, p: float) -> Tensor:
    """`input` with elements dropped by the key's mask, the rest scaled; see `reference.dropout`."""
    out = torch.empty_like(input)
    if not input.is_contiguous():
        return out.copy_(dropout(input.contiguous(), key, p))
    _native.cpu.kernels.dropout(
        out.data_ptr(), input.data_ptr(), input.numel(), DTYPES[input.dtype], key.contiguous().data_ptr(), p
    )
    return out
