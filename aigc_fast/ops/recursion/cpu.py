"""The native kernels of csrc/cpu/recursion.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast.runtime import devices, native
from aigc_fast.runtime.devices import Reason
from aigc_fast.runtime.dtypes import DTYPES, UP_TO_FLOAT32
from aigc_fast.runtime.memory import on_huge_pages

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


def _run(x: Tensor, coeffs: Tensor, state: Tensor | None, transposed: bool) -> Tensor:
    given, x, coeffs = x, _rows(x), _rows(coeffs)
    state = None if state is None else _rows(state)
    (count, length), order = x.shape, coeffs.shape[-1]
    out = on_huge_pages(torch.empty((count, length), dtype=x.dtype))
    shared = coeffs.shape[0] == 1
    if coeffs.dim() == 2:
        kernel, strides = native.cpu.kernels.recursion, (0 if shared else coeffs.stride(0),)
    else:
        kernel, strides = native.cpu.kernels.recursion_varying, (0 if shared else coeffs.stride(0), coeffs.stride(1))
    if out.numel():
        kernel(
            *_pointer_and_row(x),
            coeffs.data_ptr(),
            *strides,
            *_pointer_and_row(state),
            out.data_ptr(),
            DTYPES[x.dtype],
            count,
            length,
            order,
            int(transposed),
        )
    return out.to(given.dtype)


def recursion(x: Tensor, coeffs: Tensor, state: Tensor | None) -> Tensor:
    """See `reference.recursion`."""
    return _run(x, coeffs, state, False)


def recursion_transposed(x: Tensor, coeffs: Tensor) -> Tensor:
    """See `reference.recursion_transposed`."""
    return _run(x, coeffs, None, True)


def recursion_lags(u: Tensor, y: Tensor, state: Tensor | None, order: int, varying: bool) -> Tensor:
    """See `reference.recursion_lags`."""
    given, u, y = u, _rows(u), _rows(y)
    state = None if state is None else _rows(state)
    count, length = u.shape
    out = on_huge_pages(torch.empty((count, length, order) if varying else (count, order), dtype=u.dtype))
    if out.numel():
        native.cpu.kernels.recursion_lags(
            *_pointer_and_row(u),
            *_pointer_and_row(y),
            *_pointer_and_row(state),
            out.data_ptr(),
            DTYPES[u.dtype],
            count,
            length,
            order,
            int(varying),
        )
    return out.to(given.dtype)
