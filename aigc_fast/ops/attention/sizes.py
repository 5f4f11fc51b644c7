"""How attention's kernels on a card see a call: rows in memory, the band as distances, the keys in parts."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from aigc_fast.ops.attention.reference import Options

MOST_PARTS = 64
_LEAST_TILES = 2  # of a part


def in_rows(tensor: Tensor) -> Tensor:
    """The tensor with contiguous elements in every row, itself where it has them."""
    return tensor if tensor.stride(3) == 1 or tensor.shape[3] == 1 else tensor.contiguous()


def sides(asked: Options, queries: int, keys: int) -> tuple[int, int]:
    """The band's sides, as numbers that no distance between a query and a key exceeds where there is no limit."""
    limit = queries + keys + abs(asked.offset)
    left, right = (min(side, limit) if side >= 0 else limit for side in (asked.left, asked.right))
    return left, right


def seen_keys(asked: Options, queries: int, keys: int) -> int:
    """How many keys that lie side by side some query may see, at most."""
    left, right = sides(asked, queries, keys)
    return min(keys, left + right + queries)


@cache
def _programs(device: torch.device) -> int:
    """How many keep a device busy."""
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8


def count_parts(programs: int, tiles: int, device: torch.device) -> int:
    """Into how many parts keys are cut.

    Args:
        programs: how many there are without parts.
        tiles: of the keys.
        device: which the programs are to keep busy.
    """
    wanted = -(-_programs(device) // max(1, programs))
    return max(1, min(MOST_PARTS, wanted, tiles // _LEAST_TILES))
