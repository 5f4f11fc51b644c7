"""The native CPU kernels of linear layers, over csrc/cpu/linear.cpp."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from aigc_fast.ops.linear.limits import ROWS_WORTH_PACKING
from aigc_fast.ops.linear.packing import packing
from aigc_fast.runtime import devices, native
from aigc_fast.runtime.activations import CODES
from aigc_fast.runtime.backends import current
from aigc_fast.runtime.devices import Reason
from aigc_fast.runtime.memory import LEAST_REUSED, placed
from aigc_fast.runtime.precision import ROUNDED, factors_for

DTYPES = torch.float32, torch.bfloat16


def unsupported(input: Tensor, weight: Tensor, bias: Tensor | None) -> Reason:
    """Why the kernels cannot take these tensors, or None."""
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and (tensor.dtype != input.dtype or tensor.device != input.device):
            return f"{name} is {tensor.dtype} on {tensor.device}, input {input.dtype} on {input.device}"
    if weight.dim() != 2:
        return "the weight is a vector"
    if input.numel() == 0 or weight.numel() == 0:
        return "an argument has no elements"
    return devices.cpu(input, input.dtype, DTYPES)


def _row_step(input: Tensor) -> int | None:
    """How far apart the rows lie, where each is contiguous and all are equally far apart; else None."""
    if input.is_contiguous():
        return input.shape[-1]
    return input.stride(0) if input.dim() == 2 and input.stride(1) == 1 and input.stride(0) > 0 else None


def _lies_by_columns(input: Tensor, factors: int) -> bool:
    """Whether the kernel takes a matrix whose columns are contiguous, for products of floats."""
    is_matrix = input.dim() == 2 and input.stride(0) == 1 and input.stride(1) > 1
    return is_matrix and input.dtype == torch.float32 and factors != ROUNDED


def multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Fills `out`, contiguous, with a @ b, of float32 matrices on the CPU of any strides."""
    weight, factors = b.t(), factors_for(a.dtype, a.shape[0])
    step = a.shape[1] if _lies_by_columns(a, factors) else _row_step(a)
    given = (a.contiguous(), a.shape[1]) if step is None else (a, step)
    held = packing(weight, factors, a.shape[0]).once(weight)
    native.kernels().linear(out, *given, held.data_ptr(), None, factors, CODES["none"], 0.0)


def prepare(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    slope: float,
    fallback: Callable[..., Tensor],
) -> Callable[..., Tensor]:
    """What runs a linear layer of these shapes, strides and dtypes.

    Args:
        input, weight, bias: as for `reference.linear`.
        activation, slope: likewise.
        fallback: runs the call where the weight has no room, or is not worth packing.
    """
    shape, code = (*input.shape[:-1], weight.shape[0]), CODES[activation]
    rows = prod(input.shape[:-1])
    factors = factors_for(input.dtype, rows)
    step = input.shape[-1] if _lies_by_columns(input, factors) else _row_step(input)
    is_large = prod(shape) * input.itemsize >= LEAST_REUSED
    packed = packing(weight, factors, rows)
    forced = current() == "cpu"
    ways = (packed.of, packed.without_room) if forced or rows >= ROWS_WORTH_PACKING else (packed.kept,)

    def run(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        held = next((found for way in ways if (found := way(weight)) is not None), None)
        if held is None:
            return fallback(input, weight, bias, *rest)
        output = input.new_empty(shape)
        if is_large:
            placed(output)
        given = (input, step) if step is not None else (input.contiguous(), input.shape[-1])
        shift = bias if bias is None or bias.is_contiguous() else bias.contiguous()
        native.kernels().linear(output, *given, held.data_ptr(), shift, factors, code, slope)
        return output

    return run
