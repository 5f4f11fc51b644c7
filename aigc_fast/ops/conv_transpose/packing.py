"""Weights in the layout that the convolution kernels read."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast.ops.conv_transpose.plan import is_dense, strides_of_axes
from aigc_fast.runtime import native
from aigc_fast.runtime.kept import Packing


def packing(
    weight: Tensor, dtype: int, in_layout: bytes, out_layout: bytes, geometry: bytes, method: int, uses: int
) -> Packing:
    """How one algorithm wants the weights of one geometry.

    Args:
        weight: whose shape and strides all weights will have.
        dtype: the code of its dtype.
        in_layout, out_layout: of `plan.layout`.
        geometry: `Plan.packed_geometry`.
        method: the algorithm.
        uses: as for `Packing`.
    """
    size = native.kernels().conv_packed_size(in_layout, out_layout, geometry, method)

    def fill(weight: Tensor, address: int) -> int:
        strides = strides_of_axes(weight)
        return native.kernels().conv_pack(
            weight.data_ptr(), dtype, strides, in_layout, out_layout, geometry, method, address
        )

    # Of the layouts only the channels matter and, for one pixel, their order: the weight itself gives both.
    key = ("conv", native.level(), dtype, tuple(weight.shape), weight.stride(), geometry, method, size)
    # Gaps or overlaps would upset the packing too.
    return Packing(key, size * torch.float32.itemsize, fill, uses, is_dense(weight))
