"""Shapes of a convolution: checked once per geometry, then remembered."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import ceil, prod

import torch
from torch import Tensor

AXES = 3
MOST = 2**63 - 1
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """A checked convolution.

    Attributes:
        output_shape: (N, C, *spatial).
        geometry: kernel, stride, padding and dilation of three axes each, groups, transposed: what csrc/cpu takes.
        multiply_adds: of the direct algorithm.
        uses: of them, those of each number of the weight.
        outside: the share of them that meet the padding.
        is_matrix: the small map is one pixel and the kernel covers the large map, so that all is a matrix product.
        padding_garbles: some tap meets nothing but padding, or three axes are padded: PyTorch's weight gradient is
            right without padding only; see `reference.without_padding`.
    """

    output_shape: Ints
    geometry: Ints
    multiply_adds: int
    uses: int
    outside: float
    is_matrix: bool
    padding_garbles: bool

    @cached_property
    def packed_geometry(self) -> bytes:
        """`geometry` as the kernels read it."""
        return packed_ints(self.geometry)


def packed_ints(values: Ints) -> bytes:
    """The numbers as int64 in memory, which the kernels read in place."""
    return struct.pack(f"{len(values)}q", *values)


def layout(tensor: Tensor) -> bytes:
    """Sizes and strides of (N, C, D, H, W), with leading spatial axes of size 1 where there are fewer than three."""
    return packed_ints((*sizes_of_axes(tensor), *strides_of_axes(tensor)))


def sizes_of_axes(tensor: Tensor) -> Ints:
    """Sizes of (N, C, D, H, W), with 1 for leading spatial axes where there are fewer than three."""
    shape = tensor.shape
    return (*shape[:2], *(1,) * (2 + AXES - tensor.dim()), *shape[2:])


def strides_of_axes(tensor: Tensor) -> Ints:
    """Strides of the same axes, with 0 where there are fewer than three."""
    strides = tensor.stride()
    return (*strides[:2], *(0,) * (2 + AXES - tensor.dim()), *strides[2:])


def is_channels_last(tensor: Tensor) -> bool:
    """Whether the channels are innermost in memory; where sizes of 1 leave that open, what the strides say."""
    wanted = CHANNELS_LAST.get(tensor.dim())
    return wanted is not None and tensor.is_contiguous(memory_format=wanted) and _strides_say_channels_last(tensor)


def _strides_say_channels_last(tensor: Tensor) -> bool:
    """PyTorch's rule (c10/core/MemoryFormat.h): strides grow from the channels over the last axis to the first."""
    least = 0
    shape, strides = tensor.shape, tensor.stride()
    for d in (1, *range(tensor.dim() - 1, 1, -1), 0):
        if shape[d] == 0 or strides[d] < least or (d == 0 and least == strides[1]):
            return False
        least = strides[d] * max(1, shape[d])
    return strides[1] != 0


def is_dense(tensor: Tensor) -> bool:
    """Whether there are no gaps or overlaps in memory, in either format."""
    return tensor.is_contiguous() or is_channels_last(tensor)


def memory_format(input: Tensor, weight: Tensor) -> torch.memory_format:
    """The output's format, as PyTorch chooses it: channels_last when the input or the weight is."""
    if is_channels_last(input) or is_channels_last(weight):
        return CHANNELS_LAST[input.dim()]
    return torch.contiguous_format


def output_like(input: Tensor, weight: Tensor, plan: Plan) -> Tensor:
    """Shape, strides and dtype of the output, without memory."""
    format = memory_format(input, weight)
    return torch.empty(plan.output_shape, dtype=input.dtype, device="meta", memory_format=format)


def _check_lengths(spatial: int, **sizes: Sequence[int]) -> None:
    for name, values in sizes.items():
        if len(values) != spatial:
            raise RuntimeError(f"{name}={tuple(values)}: expected {spatial} values, one per spatial dimension")


def check_sizes(
    spatial: int, stride: Ints, padding: Ints, output_padding: Ints, dilation: Ints, groups: int = 1
) -> None:
    """Checks what a convolution takes besides tensors.

    Raises:
        RuntimeError: naming the argument that does not fit, what came and what was expected.
    """
    _check_lengths(spatial, stride=stride, padding=padding, output_padding=output_padding, dilation=dilation)
    for name, values, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if min(values) < least:
            raise RuntimeError(f"{name}={values}: expected values of at least {least}")
    for i, extra in enumerate(output_padding):
        if extra < 0 or (extra >= stride[i] and extra >= dilation[i]):
            raise RuntimeError(
                f"output_padding={output_padding}: expected values from 0 to less than stride or dilation"
            )
    if groups < 1:
        raise RuntimeError(f"groups={groups}: expected at least 1")


def _check_channels(in_channels: int, weight: Ints, bias: Ints | None, groups: int, transposed: bool) -> int:
    if transposed:
        if weight[0] != in_channels:
            raise RuntimeError(f"weight has shape {weight}: expected dimension 0 to be input's {in_channels} channels")
        if in_channels % groups:
            raise RuntimeError(f"groups={groups} does not divide input's {in_channels} channels")
        out_channels = weight[1] * groups
    else:
        if weight[1] * groups != in_channels:
            raise RuntimeError(
                f"weight has shape {weight}: expected dimension 1 to be {in_channels} channels over groups={groups}"
            )
        if weight[0] % groups:
            raise RuntimeError(f"groups={groups} does not divide weight's {weight[0]} output channels")
        out_channels = weight[0]
    if bias is not None and bias != (out_channels,):
        raise RuntimeError(f"bias has shape {bias}: expected ({out_channels},), one value per output channel")
    return out_channels


@lru_cache(maxsize=4096)
def make_plan(
    input: Ints,
    weight: Ints,
    bias: Ints | None,
    stride: Ints,
    padding: Ints,
    output_padding: Ints,
    dilation: Ints,
    groups: int,
    transposed: bool,
) -> Plan:
    """Checks a convolution of these shapes.

    Raises:
        RuntimeError: naming the argument that does not fit, what came and what was expected.
    """
    spatial = len(input) - 2
    if not 1 <= spatial <= AXES:
        raise RuntimeError(f"input has shape {input}: expected (N, C, *spatial) with 1 to 3 spatial dimensions")
    if len(weight) != len(input):
        raise RuntimeError(f"weight has shape {weight}: expected {len(input)} dimensions, as many as the batched input")
    check_sizes(spatial, stride, padding, output_padding, dilation, groups)
    out_channels = _check_channels(input[1], weight, bias, groups, transposed)
    kernel = weight[2:]
    if min(kernel) < 1:
        raise RuntimeError(f"weight has shape {weight}: expected a kernel of at least 1 in every dimension")
    size = tuple(
        _output_size(*axis, transposed)
        for axis in zip(input[2:], kernel, stride, padding, output_padding, dilation, strict=True)
    )
    least = 0 if transposed else 1
    if min(size) < least:
        raise RuntimeError(
            f"input has shape {input}: kernel {kernel}, stride {stride}, padding {padding}, dilation {dilation} give "
            f"an output of size {size}, expected at least {least}"
        )
    if max(size) > MOST:
        raise RuntimeError(
            f"input has shape {input}: stride {stride}, padding {padding}, dilation {dilation} give an output of size "
            f"{size}, expected at most {MOST}"
        )
    large, small = (size, input[2:]) if transposed else (input[2:], size)
    # With one pixel in the small map the stride does not matter, and kernels take time for each of its residues.
    stride = tuple(min(step, max(1, n + 2 * pad)) for step, n, pad in zip(stride, large, padding, strict=True))
    missing = AXES - spatial
    ones, zeros = (1,) * missing, (0,) * missing
    geometry = (*ones, *kernel, *ones, *stride, *zeros, *padding, *ones, *dilation, groups, int(transposed))
    steps = prod(input[2:]) if transposed else prod(size)
    uses = input[0] * steps
    multiply_adds = uses * prod(kernel) * (input[1] // groups) * out_channels
    is_matrix = groups == 1 and set(small) == {1} and large == kernel and not any(padding)
    axes = zip(large, small, kernel, stride, padding, dilation, strict=True)
    pixels = [_pixels_inside(*axis) for axis in axes]
    inside = prod(sum(of_taps) / (n * len(of_taps)) if n else 1.0 for of_taps, n in zip(pixels, small, strict=True))
    idle = any(0 in of_taps for of_taps in pixels)
    garbles = 0 not in (*large, *small) and (idle or (spatial == AXES and any(padding)))
    return Plan((input[0], out_channels, *size), geometry, multiply_adds, uses, 1 - inside, is_matrix, garbles)


def _pixels_inside(large: int, small: int, kernel: int, stride: int, padding: int, dilation: int) -> list[int]:
    """For each tap along one axis, how many of the small map's pixels it ties to a pixel of the large map."""
    found = []
    for tap in range(kernel):
        offset = tap * dilation - padding
        first, last = max(0, ceil(-offset / stride)), min(small, ceil((large - offset) / stride))
        found.append(max(0, last - first))
    return found


def _output_size(
    size: int, kernel: int, stride: int, padding: int, output_padding: int, dilation: int, transposed: bool
) -> int:
    reach = dilation * (kernel - 1) + 1
    if transposed:
        return (size - 1) * stride - 2 * padding + reach + output_padding
    return (size + 2 * padding - reach) // stride + 1
