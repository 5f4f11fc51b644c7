"""The native kernels of csrc/cpu/recursion.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast.runtime import devices, native
from aigc_fast.runtime.devices import Reason
from aigc_fast.runtime.dtypes import DTYPES, UP_TO_FLOAT32

_DTYPES = (*UP_TO_FLOAT32, torch.float64)


def unsupported(x: Tensor, *rest: object) -> Reason:
    """Why this backend cannot take these arguments, or None."""
    return devices.cpu(x, x.dtype, _DTYPES)


def _rows(tensor: Tensor) -> Tensor:
    """The tensor in a type that is computed in, with contiguous elements in every row."""
    if tensor.dtype != torch.float64:
        tensor = tensor.float()
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _pointer_and_row(tensor: Tensor | None) -> tuple[int | None, int]:
    return (None, 0) if tensor is None else (tensor.data_ptr(), tensor.stride(0))


def _computed(out: Tensor) -> Tensor:
    """The results themselves, or memory for them in the type that is computed in."""
    return out if out.dtype in (torch.float32, torch.float64) else torch.empty_like(out, dtype=torch.float32)


def _run(out: Tensor, x: Tensor, coeffs: Tensor, state: Tensor | None, sign: int, transposed: bool) -> bool:
    found, x, coeffs = _computed(out), _rows(x), _rows(coeffs)
    state = None if state is None else _rows(state)
    (count, length), order = x.shape, coeffs.shape[-1]
    shared = coeffs.shape[0] == 1
    if coeffs.dim() == 2:
        kernel, strides = native.kernels().recursion, (0 if shared else coeffs.stride(0),)
    else:
        kernel, strides = native.kernels().recursion_varying, (0 if shared else coeffs.stride(0), coeffs.stride(1))
    if found.numel():
        kernel(
            *_pointer_and_row(x),
            coeffs.data_ptr(),
            *strides,
            *_pointer_and_row(state),
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
    found, u, y = _computed(out), _rows(u), _rows(y)
    state = None if state is None else _rows(state)
    if found.numel():
        native.kernels().recursion_lags(
            *_pointer_and_row(u),
            *_pointer_and_row(y),
            *_pointer_and_row(state),
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
