"""Convolution and its gradients in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from aigc_fast.runtime.activations import FUNCTIONS, GRADIENTS_FROM_OUTPUT, IN_PLACE

# By the number of spatial dimensions.
CONV = (None, torch.conv1d, torch.conv2d, torch.conv3d)
CONV_TRANSPOSE = (None, torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)

ACTIVATIONS = {name: FUNCTIONS[name] for name in GRADIENTS_FROM_OUTPUT}


def conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """out[n, s, o] = bias[s] + sum over l, k of weight[s, l, k] * input[n, l, o * stride - padding + k * dilation]."""
    return CONV[len(stride)](input, weight, bias, stride, padding, dilation, groups)


def conv_transpose(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """out[n, l, o * stride - padding + k * dilation] gathers weight[s, l, k] * input[n, s, o], plus bias[l]."""
    return CONV_TRANSPOSE[len(stride)](input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_weight_gradient(
    large: Tensor,
    small: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """weight[s, l, k] = sum over n, o of small[n, s, o] * large[n, l, o * stride - padding + k * dilation]."""
    shape = (small.shape[1], large.shape[1] // groups, *kernel_size)
    if max(kernel_size) == 1 and max(stride) > 1:
        # oneDNN's writes beyond its memory here, of few channels in channels_last (torch 2.13.0).
        large, padding = _met_by_one_pixel(large, small, stride, padding), [0] * len(stride)
        stride = [1] * len(stride)
    weight = large.new_empty(1).expand(shape)
    no_output_padding = [0] * len(stride)
    return torch.ops.aten.convolution_backward(
        small, large, weight, None, stride, padding, dilation, False, no_output_padding, groups, (False, True, False)
    )[1]


def _met_by_one_pixel(large: Tensor, small: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """The pixels of the larger map that a kernel of one meets, of small's size."""
    padded = _pad(large, padding) if any(padding) else large
    steps = (slice(0, (size - 1) * step + 1, step) for size, step in zip(small.shape[2:], stride, strict=True))
    return padded[(..., *steps)].contiguous()


def _pad(large: Tensor, padding: Sequence[int], sign: int = 1) -> Tensor:
    return torch.nn.functional.pad(large, [sign * size for size in reversed(padding) for _ in range(2)])


def without_padding(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of this module with the padding made a part of the large map, so that all taps meet some of it.

    With padding, the weight gradient that PyTorch takes from oneDNN may leave taps unwritten, write beyond its memory
    or never return, where taps meet nothing else and in three dimensions for others too; where no tap meets anything
    else, the convolution itself may read beyond its memory.
    """

    def of_large_map(large: Tensor, other: Tensor, third: Any, stride: Any, padding: Any, *rest: Any) -> Tensor:
        return function(_pad(large, padding), other, third, stride, (0,) * len(padding), *rest)

    def to_large_map(small: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, *rest: Any) -> Tensor:
        return _pad(function(small, weight, bias, stride, (0,) * len(padding), *rest), padding, -1)

    return to_large_map if function in (conv_transpose, conv_transpose_activation) else of_large_map


def _ended(output: Tensor, activation: str, slope: float) -> Tensor:
    """What an activation makes of an output that nobody else has, in its place where no gradient is wanted."""
    functions = ACTIVATIONS if torch.is_grad_enabled() else ACTIVATIONS | IN_PLACE
    return functions[activation](output, slope)


def conv_activation(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
    slope: float,
) -> Tensor:
    """`conv` followed by an activation of `ACTIVATIONS`."""
    return _ended(conv(input, weight, bias, stride, padding, dilation, groups), activation, slope)


def conv_transpose_activation(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
    slope: float,
) -> Tensor:
    """`conv_transpose` followed by an activation of `ACTIVATIONS`."""
    output = conv_transpose(input, weight, bias, stride, padding, output_padding, dilation, groups)
    return _ended(output, activation, slope)
