"""A convolution of what nearest-neighbour upsampling doubled, as a transposed convolution of what it doubled.

Of the three elements that a kernel of 3 meets along an axis of a doubled map two are the same, so that two numbers do
for the three of the kernel. An even output y[2i] is w[0] x[i-1] + (w[1] + w[2]) x[i], an odd one y[2i+1] is
(w[0] + w[1]) x[i] + w[2] x[i+1]: a transposed convolution of kernel (w[2], w[1] + w[2], w[0] + w[1], w[0]), stride 2
and padding 1, of 4 products for 9 on two axes, that never sees the doubled map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast.ops.conv_transpose.limits import (
    DOUBLED_POSITIONS,
    DOUBLED_POSITIONS_OF_GRADIENTS,
    DOUBLED_WORK,
    DOUBLED_WORK_OF_GRADIENTS,
    FEW_DOUBLED_OUTPUTS,
    MOST_DOUBLED_GROUPS,
)
from aigc_fast.ops.conv_transpose.plan import memory_format
from aigc_fast.runtime import native
from aigc_fast.runtime.autocast import has_autocast
from aigc_fast.runtime.machine import is_intels

# The convolution of the doubled map has this kernel and padding, the transposed one this kernel, stride and padding.
KERNEL, PADDING = 3, 1
DOUBLING_KERNEL, STRIDE = 4, 2
# That bfloat16 was measured on.
_BFLOAT16_AXES = 2


def geometry(axes: int) -> tuple[tuple[int, ...], ...]:
    """Stride, padding, output padding and dilation of the transposed convolution."""
    return (STRIDE,) * axes, (PADDING,) * axes, (0,) * axes, (1,) * axes


def gains(input: Tensor, weight: Tensor, gradients: bool) -> bool:
    """Whether the transposed convolution is faster than doubling and convolution; on the CPU alone.

    Of weights in float32, which autocast may round: sums of numbers in fewer bits would be rounded once more.

    Args:
        input: (N, C_in, ...), to be doubled.
        weight: of the convolution.
        gradients: whether any are wanted: the weight is then made anew in each call, and its gradient taken back.
    """
    if not input.is_cpu or weight.dtype != torch.float32 or native.cpu_reason() is not None:
        return False
    if has_autocast(input):
        known = input.dtype in (torch.float32, torch.bfloat16) and weight.dim() == _BFLOAT16_AXES + 2
        if not (known and _is_measured_in_bfloat16()):
            return False
    elif input.dtype != torch.float32:
        return False
    if input.shape[1] > MOST_DOUBLED_GROUPS * weight.shape[1]:
        return False
    outputs, positions = weight.shape[0], input.numel() // (input.shape[1] or 1)
    work = outputs * input.numel()
    if gradients:
        return work >= DOUBLED_WORK_OF_GRADIENTS and positions >= DOUBLED_POSITIONS_OF_GRADIENTS
    return work >= DOUBLED_WORK or (outputs <= FEW_DOUBLED_OUTPUTS and positions >= DOUBLED_POSITIONS)


def _is_measured_in_bfloat16() -> bool:
    return native.level() == "avx512_bf16" and not is_intels()


def doubling_weight(weight: Tensor, groups: int) -> Tensor:
    """The weight of the transposed convolution that equals a convolution of the doubled input.

    `conv_transpose(x, doubling_weight(weight, groups), bias, stride=2, padding=1, groups=groups)` equals
    `conv(interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1, groups=groups)`.

    Args:
        weight: (C_out, C_in / groups, 3, ...), of 1 to 3 axes.
        groups: of both.

    Returns:
        (C_in, C_out / groups, 4, ...) in the memory format of `weight`, through which gradients go.
    """
    lies = memory_format(weight, weight)
    for axis in range(2, weight.dim()):
        first, middle, last = weight.unbind(axis)
        weight = torch.stack((last, middle + last, first + middle, first), axis)
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).contiguous(memory_format=lies)
