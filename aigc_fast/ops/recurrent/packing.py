"""Weights in the layout that the kernels read."""

from __future__ import annotations

from functools import lru_cache

from torch import Tensor

from aigc_fast.runtime import native
from aigc_fast.runtime.kept import Packing


@lru_cache(maxsize=512)
def packing(level: str, mode: int, hidden: int, depth: int, uses: int) -> Packing:
    """How the kernels of a level want the weight (gates * hidden, depth) of `uses` rows."""
    size = native.cpu.kernels.recurrent_packed_size(mode, hidden, depth)

    def fill(weight: Tensor, address: int) -> bool:
        native.cpu.kernels.recurrent_pack(weight.detach(), mode, hidden, address)
        return True

    return Packing(("recurrent", level, mode, hidden, depth), 4 * size, fill, uses)
