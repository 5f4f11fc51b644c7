"""The native kernels of csrc/cpu/recursion.cpp."""

from __future__ import annotations

from torch import Tensor

from aigc_fast.ops.recursion.rows import DTYPES as COMPUTED
from aigc_fast.ops.recursion.rows import coeffs_strides, computed, pointer_and_row, rows
from aigc_fast.runtime import devices, native
from aigc_fast.runtime.devices import Reason
from aigc_fast.runtime.dtypes import DTYPES


def unsupported(x: Tensor, *rest: object) -> Reason:
    """Why this backend cannot take these arguments, or None."""
    return devices.cpu(x, x.dtype, COMPUTED)


def _run(out: Tensor, x: Tensor, coeffs: Tensor, state: Tensor | None, sign: int, transposed: bool) -> bool:
    found, x, coeffs = computed(out), rows(x), rows(coeffs)
    state = None if state is None else rows(state)
    (count, length), order = x.shape, coeffs.shape[-1]
    series, step = coeffs_strides(coeffs)
    if coeffs.dim() == 2:
        kernel, strides = native.kernels().recursion, (series,)
    else:
        kernel, strides = native.kernels().recursion_varying, (series, step)
    if found.numel():
        kernel(
            *pointer_and_row(x),
            coeffs.data_ptr(),
            *strides,
            *pointer_and_row(state),
            found.data_ptr(),
            DTYPES[x.dtype],
            count,
            length,
            order,
            sign,
            int(transposed),
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
    if found.numel():
        native.kernels().recursion_lags(
            *pointer_and_row(u),
            *pointer_and_row(y),
            *pointer_and_row(state),
            found.data_ptr(),
            DTYPES[u.dtype],
            *u.shape,
            order,
            sign,
            int(varying),
        )
    if found is not out:
        out.copy_(found)
    return True
