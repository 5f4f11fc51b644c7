"""The native kernels of csrc/cuda/recursion.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast.ops.recursion.rows import DTYPES as COMPUTED
from aigc_fast.ops.recursion.rows import coeffs_strides, computed, pointer_and_row, rows
from aigc_fast.runtime import devices, native
from aigc_fast.runtime.devices import Reason, queue
from aigc_fast.runtime.dtypes import DTYPES


def unsupported(x: Tensor, *rest: object) -> Reason:
    """Why this backend cannot take these arguments, or None."""
    if x.dtype not in COMPUTED:
        return f"{x.dtype} is computed by the reference"
    return devices.cuda(x.dtype, x, *(value for value in rest if isinstance(value, Tensor)))


def _workspace(like: Tensor, count: int, dtype: torch.dtype) -> Tensor | None:
    return torch.empty(count, dtype=dtype, device=like.device) if count else None


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _run(out: Tensor, x: Tensor, coeffs: Tensor, state: Tensor | None, sign: int, transposed: bool) -> bool:
    found, x, coeffs = computed(out), rows(x), rows(coeffs)
    state = None if state is None else rows(state)
    (count, length), order = x.shape, coeffs.shape[-1]
    series, step = coeffs_strides(coeffs)
    code = DTYPES[x.dtype]
    if found.numel():
        nbytes = native.cuda.recursion_workspace(count, length, order, int(series == 0), int(step != 0), code)
        workspace = _workspace(x, nbytes, torch.uint8)
        native.cuda.recursion(
            *pointer_and_row(x),
            coeffs.data_ptr(),
            series,
            step,
            *pointer_and_row(state),
            found.data_ptr(),
            code,
            count,
            length,
            order,
            sign,
            int(transposed),
            _address(workspace),
            *queue(x),
        )
    if found is not out:
        out.copy_(found)
    return True


def recursion(out: Tensor, x: Tensor, coeffs: Tensor, state: Tensor | None, sign: int = 1) -> bool:
    """See `reference.recursion`."""
    return _run(out, x, coeffs, state, sign, False)


def recursion_transposed(out: Tensor, x: Tensor, coeffs: Tensor, sign: int = 1) -> bool:
    """See `reference.recursion_transposed`."""
    return _run(out, x, coeffs, None, sign, True)


def recursion_lags(
    out: Tensor, u: Tensor, y: Tensor, state: Tensor | None, order: int, varying: bool, sign: int = 1
) -> bool:
    """See `reference.recursion_lags`."""
    found, u, y = computed(out), rows(u), rows(y)
    state = None if state is None else rows(state)
    count, length = u.shape
    if found.numel():
        doubles = 0 if varying else native.cuda.recursion_lags_workspace(count, length, order)
        workspace = _workspace(u, doubles, torch.float64)
        native.cuda.recursion_lags(
            *pointer_and_row(u),
            *pointer_and_row(y),
            *pointer_and_row(state),
            found.data_ptr(),
            DTYPES[u.dtype],
            count,
            length,
            order,
            sign,
            int(varying),
            _address(workspace),
            *queue(u),
        )
    if found is not out:
        out.copy_(found)
    return True
