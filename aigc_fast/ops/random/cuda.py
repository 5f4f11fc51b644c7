"""The native kernels of csrc/cuda/random.cu."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from aigc_fast.ops.random.reference import keep_below, keep_scale
from aigc_fast.runtime import devices, native
from aigc_fast.runtime.devices import Reason, queue
from aigc_fast.runtime.dtypes import DTYPES
from aigc_fast.runtime.memory import fill_densely


def normal_unsupported(size: Sequence[int], key: Tensor, dtype: torch.dtype) -> Reason:
    """Why this backend cannot draw these uniforms or normals, or None."""
    return devices.cuda(dtype, key)


uniform_unsupported = normal_unsupported


def dropout_unsupported(input: Tensor, key: Tensor, p: float) -> Reason:
    """Why this backend cannot drop out of this input, or None."""
    return devices.cuda(input.dtype, input, key)


def _draw(kernel: str, out: Tensor, key: Tensor) -> None:
    fill = getattr(native.cuda, kernel)
    fill(out.data_ptr(), out.numel(), DTYPES[out.dtype], key.data_ptr(), *queue(out))


def normal(out: Tensor, size: Sequence[int], key: Tensor, dtype: torch.dtype) -> bool:
    """Standard normals of `size` from the key; see `reference.normal`."""
    return fill_densely(partial(_draw, "normal"), (out,), key)


def uniform(out: Tensor, size: Sequence[int], key: Tensor, dtype: torch.dtype) -> bool:
    """Uniforms in [0, 1) of `size` from the key; see `reference.uniform`."""
    return fill_densely(partial(_draw, "uniform"), (out,), key)


def _dropout(out: Tensor, input: Tensor, key: Tensor, p: float) -> None:
    native.cuda.dropout(
        out.data_ptr(),
        input.data_ptr(),
        input.numel(),
        DTYPES[input.dtype],
        key.data_ptr(),
        keep_below(p),
        keep_scale(p),
        *queue(input),
    )


def dropout(out: Tensor, input: Tensor, key: Tensor, p: float) -> bool:
    """`input` with elements dropped by the key's mask, the rest scaled; see `reference.dropout`."""
    return fill_densely(_dropout, (out,), input, key, p)
