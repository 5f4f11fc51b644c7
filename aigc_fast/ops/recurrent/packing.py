"""Weights in the layout that the kernels read."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from aigc_fast.ops.recurrent.sizes import GATES
from aigc_fast.runtime import native
from aigc_fast.runtime.kept import Packing
from aigc_fast.runtime.weights import AS_THEY_ARE


@lru_cache(maxsize=512)
def packing(
    level: str, mode: int, dtype: torch.dtype, rows: int, depth: int, uses: int, weights: int = AS_THEY_ARE
) -> Packing:
    """How the kernels of a level want a weight of (gates * hidden, depth).

    Args:
        level: the one in use.
        mode: the cell, by its code.
        dtype: float32, or bfloat16 of an even depth.
        rows, depth: the weight's sizes.
        uses: as for `Packing`.
        weights: how they are kept, by its code; those that are not kept as they are, are of float32.
    """
    hidden = rows // GATES[mode]
    kernels = native.kernels()
    if weights == AS_THEY_ARE:
        size = kernels.recurrent_packed_size(mode, hidden, depth) * dtype.itemsize
    else:
        size = kernels.recurrent_compact_bytes(weights, mode, hidden, depth)

    def fill(weight: Tensor, address: int) -> bool:
        if weights == AS_THEY_ARE:
            native.kernels().recurrent_pack(weight, mode, hidden, address)
        else:
            native.kernels().recurrent_pack_compact(weight, weights, mode, hidden, address)
        return True

    return Packing(("recurrent", level, mode, dtype, rows, depth, weights), size, fill, uses)


@lru_cache(maxsize=512)
def packing_of_head(level: str, rows: int, depth: int, uses: int, weights: int) -> Packing:
    """The same of a head (tokens, depth) of float32."""

    def fill(weight: Tensor, address: int) -> bool:
        native.kernels().recurrent_pack_compact_head(weight, weights, address)
        return True

    size = native.kernels().recurrent_compact_head_bytes(weights, rows, depth)
    return Packing(("recurrent head", level, rows, depth, weights), size, fill, uses)
