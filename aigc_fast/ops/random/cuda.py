"""The native kernels of csrc/cuda/random.cu."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from aigc_fast.ops.random.reference import keep_below, keep_scale
from aigc_fast.runtime import devices, native
from aigc_fast.runtime.devices import Reason, current_stream
from aigc_fast.runtime.dtypes import DTYPES


def normal_unsupported(size: Sequence[int], key: Tensor, dtype: torch.dtype) -> Reason:
    """Why this backend cannot draw these uniforms or normals, or None."""
    return devices.cuda(key, dtype)


uniform_unsupported = normal_unsupported


def dropout_unsupported(input: Tensor, key: Tensor, p: float) -> Reason:
    """Why this backend cannot drop out of this input, or None."""
    return devices.cuda(input, input.dtype)


def _fill(kernel: str, size: Sequence[int], key: Tensor, dtype: torch.dtype) -> Tensor:
    out = torch.empty(size, dtype=dtype, device=key.device)
    n = math.prod(size)
    if n:
        with torch.cuda.device(key.device):
            fill = getattr(native.cuda, kernel)
            fill(out.data_ptr(), n, DTYPES[dtype], key.contiguous().data_ptr(), current_stream(out))
    return out


def normal(size: Sequence[int], key: Tensor, dtype: torch.dtype) -> Tensor:
    """Standard normals of `size` from the key; see `reference.normal`."""
    return _fill("normal", size, key, dtype)


def uniform(size: Sequence[int], key: Tensor, dtype: torch.dtype) -> Tensor:
    """Uniforms in [0, 1) of `size` from the key; see `reference.uniform`."""
    return _fill("uniform", size, key, dtype)


def dropout(input: Tensor, key: Tensor, p: float) -> Tensor:
    """`input` with elements dropped by the key's mask, the rest scaled; see `reference.dropout`."""
    out = torch.empty_like(input)
    if not input.is_contiguous():
        return out.copy_(dropout(input.contiguous(), key, p))
    if input.numel():
        with torch.cuda.device(input.device):
            native.cuda.dropout(
                out.data_ptr(),
                input.data_ptr(),
                input.numel(),
                DTYPES[input.dtype],
                key.contiguous().data_ptr(),
                keep_below(p),
                keep_scale(p),
                current_stream(input),
            )
    return out
