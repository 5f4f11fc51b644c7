"""Weights in the layout that the kernels read."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from aigc_fast.ops.recurrent.sizes import GATES
from aigc_fast.runtime import native
from aigc_fast.runtime.kept import Packing


@lru_cache(maxsize=512)
def packing(level: str, mode: int, dtype: torch.dtype, rows: int, depth: int, uses: int) -> Packing:
    """How the kernels of a level want a weight of (gates * hidden, depth).

    Args:
        level: the one in use.
        mode: the cell, by its code.
        dtype: float32, or bfloat16 of an even depth.
        rows, depth: the weight's sizes.
        uses: as for `Packing`.
    """
    hidden = rows // GATES[mode]
    size = native.kernels().recurrent_packed_size(mode, hidden, depth) * dtype.itemsize

    def fill(weight: Tensor, address: int) -> bool:
        native.kernels().recurrent_pack(weight, mode, hidden, address)
        return True

    return Packing(("recurrent", level, mode, dtype, rows, depth), size, fill, uses)
