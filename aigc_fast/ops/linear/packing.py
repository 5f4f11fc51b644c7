"""Packed weights of linear layers, which calls and the store of kept weights share."""

from __future__ import annotations

from torch import Tensor

from aigc_fast.runtime import native
from aigc_fast.runtime.kept import Packing

# A number of a weight is multiplied in so little time that to read all of them again costs this many times as much as
# for a convolution: 12 % of a call with 394 rows. AVX-512 BF16, Intel Xeon (family 6 model 207), 2 threads, torch
# 2.13.0, 2026-11-29.
USES_PER_LOOK = 8


def packing(weight: Tensor, factors: int, rows: int) -> Packing:
    """How the kernel wants weights of this shape, strides and dtype, of which a call multiplies so many rows."""
    columns, depth = weight.shape
    nbytes = native.kernels().linear_packed_bytes(columns, depth, factors)

    def fill(weight: Tensor, address: int) -> bool:
        native.kernels().linear_pack(weight.detach(), factors, address)
        return True

    key = ("linear", native.level(), weight.dtype, (columns, depth), weight.stride(), factors, nbytes)
    dense = weight.is_contiguous() or weight.t().is_contiguous()
    return Packing(key, nbytes, fill, rows // USES_PER_LOOK, dense)
