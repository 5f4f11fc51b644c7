"""Tensors as the native kernels take them: in a type that is computed in, with contiguous rows."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast.runtime.dtypes import UP_TO_FLOAT32

DTYPES = (*UP_TO_FLOAT32, torch.float64)


def rows(tensor: Tensor) -> Tensor:
    """The tensor in a type that is computed in, with contiguous elements in every row."""
    if tensor.dtype != torch.float64:
        tensor = tensor.float()
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def pointer_and_row(tensor: Tensor | None) -> tuple[int | None, int]:
    """The address and the elements from one row to the next; of none, (None, 0)."""
    return (None, 0) if tensor is None else (tensor.data_ptr(), tensor.stride(0))


def computed(out: Tensor) -> Tensor:
    """The results themselves, or memory for them in the type that is computed in."""
    return out if out.dtype in (torch.float32, torch.float64) else torch.empty_like(out, dtype=torch.float32)


def coeffs_strides(coeffs: Tensor) -> tuple[int, int]:
    """Of the series, 0 where they share the coefficients, and of the step, 0 where those are of all steps."""
    return 0 if coeffs.shape[0] == 1 else coeffs.stride(0), coeffs.stride(1) if coeffs.dim() == 3 else 0
