"""Attention by the Triton kernels of `triton_forward.py` and `triton_backward.py`: few queries with the keys in parts,
many in blocks, whose hidden tiles of keys are skipped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from aigc_fast.ops.attention import reference, triton_backward, triton_forward
from aigc_fast.ops.attention.choice import FEW_TRITON_ROWS
from aigc_fast.ops.attention.reference import Options
from aigc_fast.ops.attention.sizes import MOST_PARTS, count_parts, in_rows, seen_keys, sides
from aigc_fast.ops.random.reference import keep_below, keep_scale
from aigc_fast.runtime.devices import current, is_interpreted
from aigc_fast.runtime.precision import precision

_LEAST_WIDTH = 16  # of a factor of a product


class Bounds(NamedTuple):
    """Where sequences that lie one after the other begin and, at last, end."""

    queries: Tensor
    keys: Tensor


def _width(size: int) -> int:
    return max(_LEAST_WIDTH, triton.next_power_of_2(size))


def _precision(dtype: torch.dtype, width: int) -> str:
    """Of the products: of more than 128 numbers the parts of float32 would not fit into registers."""
    if is_interpreted():
        return "interpreted"
    return precision() if dtype == torch.float32 and width <= 128 else "highest"


def _places(**tensors: Tensor) -> dict[str, int]:
    """The strides of batches, heads and rows, by name."""
    return {
        f"{name}_{what}": tensor.stride(dim)
        for name, tensor in tensors.items()
        for dim, what in enumerate(("batch", "head", "row"))
    }


def _band(asked: Options, queries: int, keys: int) -> dict[str, Any]:
    left, right = sides(asked, queries, keys)
    return {"left": left, "right": right, "offset": asked.offset, "BAND": asked.left >= 0 or asked.right >= 0}


def _dropout(asked: Options, bounds: Bounds | None, keys: int) -> dict[str, Any]:
    on = asked.philox_key is not None
    return {
        "philox_key": asked.philox_key.contiguous() if on else None,
        # A signed 32-bit number, whatever the probability.
        "below": keep_below(asked.dropout_p) - 2**31 if on else 0,
        "keep_scale": keep_scale(asked.dropout_p) if on else 0.0,
        "ALIGNED": bounds is None and keys % 4 == 0,
    }


def _mask(mask: Tensor | None) -> dict[str, Any]:
    if mask is None:
        return {"mask": None, **dict.fromkeys(_MASK_STRIDES, 0), "BOOLEAN": False}
    boolean = mask.dtype == torch.bool
    strides = dict(zip(_MASK_STRIDES, mask.stride(), strict=True))
    return {"mask": mask.view(torch.uint8) if boolean else mask, **strides, "BOOLEAN": boolean}


_MASK_STRIDES = "mask_batch", "mask_head", "mask_query", "mask_key"


def _sizes(query: Tensor, key: Tensor, value: Tensor) -> dict[str, int]:
    (_, heads, queries, size), (_, groups, keys, _), value_size = query.shape, key.shape, value.shape[3]
    return {
        "queries": queries,
        "keys": keys,
        "groups": groups,
        "shared": heads // groups,
        "SIZE": size,
        "WIDTH": _width(size),
        "VALUE_SIZE": value_size,
        "VALUE_WIDTH": _width(value_size),
    }


def _seen(asked: Options, sizes: dict[str, int], batches: int, block: dict[str, int]) -> Tensor | None:
    """Whether any row of a block sees any key of a tile: 0 or 1, over (batches, groups, blocks, tiles of keys), whose
    first two sizes are 1 where the mask is the same for all; None without a mask."""
    if asked.mask is None:
        return None
    mask = _mask(asked.mask)
    queries, keys, shared = sizes["queries"], sizes["keys"], sizes["shared"]
    shape = (
        batches if mask["mask_batch"] else 1,
        sizes["groups"] if mask["mask_head"] else 1,
        triton.cdiv(queries * shared, block["ROWS"]),
        triton.cdiv(keys, block["KEYS"]),
    )
    found = torch.empty(shape, dtype=torch.uint8, device=asked.mask.device)
    numbers = {"groups": shape[1], "shared": shared, "blocks": shape[2], "columns": shape[3]}
    triton_forward.look[(found.numel(),)](
        found,
        **mask,
        **numbers,
        queries=queries,
        keys=keys,
        **_band(asked, queries, keys),
        ROWS=block["ROWS"],
        KEYS=block["KEYS"],
    )
    return found


def _listed(seen: Tensor | None) -> dict[str, Any]:
    """The numbers of what is seen, first in each row of the table, and how many they are."""
    if seen is None:
        return {"tiles": None, "counts": None, "tiles_batch": 0, "tiles_group": 0}
    batches, groups, rows, _ = seen.shape
    return {
        "tiles": seen.argsort(stable=True, dim=-1, descending=True).int(),
        "counts": seen.sum(-1, dtype=torch.int32),
        "tiles_batch": groups * rows if batches > 1 else 0,
        "tiles_group": rows if groups > 1 else 0,
    }


def _in_blocks(of: Tensor | None, bounds: Bounds | None, total: int, size: int, each: int = 1) -> dict[str, Any]:
    """How many blocks of so many rows there are, at most, and which of them begins a sequence, and is which one's.

    Args:
        of: the bounds that count, in elements of `each` rows.
        bounds: both; None for one sequence.
        total: the elements of all.
        size: of a block.
        each: rows of an element.
    """
    if bounds is None:
        return {"starts": None, "owners": None, "cu_q": None, "cu_k": None, "blocks": triton.cdiv(total * each, size)}
    counts = (of.diff().long() * each + size - 1) // size
    ends, most = counts.cumsum(0), triton.cdiv(total * each, size) + len(counts)
    owners = torch.searchsorted(ends, torch.arange(most, device=of.device), right=True).clamp_max(len(counts) - 1)
    return {"starts": ends - counts, "owners": owners, "cu_q": bounds.queries, "cu_k": bounds.keys, "blocks": most}


def _lengths(bounds: Bounds | None, queries: int, keys: int) -> tuple[int, int]:
    """Queries and keys of a sequence, on average."""
    count = 1 if bounds is None else len(bounds.queries) - 1
    return triton.cdiv(queries, count), triton.cdiv(keys, count)


def _block(rows: int, keys: int, warps: int) -> dict[str, int]:
    """How many rows and keys a program takes at a time, and its warps: what fits into registers, as the gate has it."""
    return {"ROWS": rows, "KEYS": keys, "num_warps": warps}


def _multiplies_from_shared(device: torch.device) -> bool:
    """Whether products of 64 rows take their factors from shared memory, which leaves registers: from Hopper on."""
    return device.type != "cpu" and torch.cuda.get_device_capability(device)[0] >= 9


def _blocks(rows: int, width: int, query: Tensor, masked: bool) -> dict[str, int]:
    """Of forward; the addresses of a mask take registers too."""
    is_float32 = query.dtype == torch.float32
    if width > 128 and is_float32:
        return _block(16, 16, 8) | {"num_stages": 1}
    if rows <= FEW_TRITON_ROWS:
        return _block(FEW_TRITON_ROWS, 32 if width > 128 or is_float32 else 64, 8 if is_float32 else 4)
    if is_float32:
        return _block(16, 32, 8)
    if width > 128:
        return _block(64 if _multiplies_from_shared(query.device) else 32, 32, 8)
    return _block(64, 32 if masked else 64, 4 if width <= 64 else 8)


def _blocks_for_queries(width: int, dtype: torch.dtype) -> dict[str, int]:
    """Of the gradient to queries."""
    if dtype == torch.float32:
        size = 32 if width <= 64 else 16
        return _block(size, size, 8 if precision() == "highest" or width > 128 else 4)
    return _block(64, 32, 4 if width <= 64 else 8) if width <= 128 else _block(32, 32, 4)


def _blocks_for_keys(width: int, query: Tensor) -> dict[str, int]:
    """Of the gradients to keys and values."""
    if query.dtype == torch.float32:
        if width > 64:  # with the next rows on their way there would be no registers
            return _block(16, 16, 8) | {"num_stages": 1}
        return _block(16, 16, 8) if precision() == "highest" else _block(32, 32, 8)
    if width <= 64 and not _multiplies_from_shared(query.device):
        return _block(64, 32, 8)
    return _block(32, 64 if width <= 128 else 32, 8)


def attention(results: tuple[Tensor, Tensor], query: Tensor, key: Tensor, value: Tensor, *options: object) -> bool:
    """The output and the log-sum-exp; see `reference.attention`. False only for what has no elements."""
    if not all(tensor.numel() for tensor in (query, key, value)):
        return False
    with current(query):
        _attend(results, in_rows(query), in_rows(key), in_rows(value), Options(*options))
    return True


def _attend(
    results: tuple[Tensor, Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    asked: Options,
    bounds: Bounds | None = None,
    splits: int = 0,
) -> None:
    """Forward, of sequences within `bounds` or of whole tensors, the keys in `splits` parts, 0 for as many as suit."""
    output, sums = results
    batches, sizes = query.shape[0], _sizes(query, key, value)
    shared, width = sizes["shared"], max(sizes["WIDTH"], sizes["VALUE_WIDTH"])
    queries, keys = _lengths(bounds, sizes["queries"], sizes["keys"])
    # If one part is asked for, blocks do not depend on the other sequences.
    rows = FEW_TRITON_ROWS + 1 if bounds and splits == 1 else queries * shared
    block = _blocks(rows, width, query, asked.mask is not None)
    in_blocks = _in_blocks(bounds and bounds.queries, bounds, sizes["queries"], block["ROWS"], shared)
    units = in_blocks["blocks"] * batches * sizes["groups"]
    tiles_of_keys = triton.cdiv(seen_keys(asked, queries, keys), block["KEYS"])
    splits = min(splits, MOST_PARTS) or count_parts(units, tiles_of_keys, query.device)
    # Reading a mask costs more than reading the keys that few queries do not see.
    seen = None if in_blocks["blocks"] == 1 else _seen(asked, sizes, batches, block)
    out, out_sums = results
    if splits > 1:
        out, out_sums = (
            torch.empty((splits, *result.shape), dtype=torch.float32, device=result.device) for result in results
        )
    triton_forward.forward[(units * splits,)](
        out,
        out_sums,
        query,
        key,
        value,
        **_mask(asked.mask),
        **_listed(seen),
        **in_blocks,
        **_dropout(asked, bounds, sizes["keys"]),
        **_places(out=out[0] if splits > 1 else out, query=query, key=key, value=value),
        out_split=output.numel(),
        sums_split=sums.numel(),
        **_sums_places(sums),
        **sizes,
        splits=splits,
        **_band(asked, sizes["queries"], sizes["keys"]),
        scale=asked.scale,
        PRECISION=_precision(query.dtype, width),
        **block,
    )
    if splits > 1:
        _combine(results, out, out_sums, splits)


def _sums_places(sums: Tensor) -> dict[str, int]:
    return {"sums_batch": sums.stride(0), "sums_head": sums.stride(1)}


def _combine(results: tuple[Tensor, Tensor], parts: Tensor, part_sums: Tensor, splits: int) -> None:
    output, sums = results
    _, heads, queries, size = output.shape
    triton_forward.combine[(sums.numel(),)](
        output,
        sums,
        parts,
        part_sums,
        **_places(out=output),
        heads=heads,
        queries=queries,
        splits=splits,
        SIZE=size,
        WIDTH=triton.next_power_of_2(size),
        SPLITS=triton.next_power_of_2(splits),
    )


def attention_backward(
    results: tuple[Tensor, ...], grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *options: object
) -> bool:
    """The gradients; see `reference.attention_backward`. False only for what has no elements."""
    if not all(tensor.numel() for tensor in (query, key, value)):
        return False
    filled = [in_rows(result) for result in results]
    with current(query):
        _differentiate(filled, *map(in_rows, (grad, query, key, value)), asked=Options(*options))
    for result, dense in zip(results, filled, strict=True):
        if dense is not result:
            result.copy_(dense)
    return True


def _differentiate(results: Sequence[Tensor], *tensors: Tensor, asked: Options, bounds: Bounds | None = None) -> None:
    to_query, to_key, to_value = results
    grad, query, key, value = tensors
    batches, sizes = query.shape[0], _sizes(query, key, value)
    width = max(sizes["WIDTH"], sizes["VALUE_WIDTH"])
    # Neither is kept from forward, as on the CPU: they are found again, the output unrounded.
    output = torch.empty(grad.shape, dtype=torch.float32, device=grad.device)
    sums = output.new_empty(grad.shape[:3])
    _attend((output, sums), query, key, value, asked, bounds)
    inner = (grad * output).sum(-1)
    given = {
        **_mask(asked.mask),
        **_dropout(asked, bounds, sizes["keys"]),
        **_places(grad=grad, query=query, key=key, value=value),
        **_sums_places(sums),
        **sizes,
        **_band(asked, sizes["queries"], sizes["keys"]),
        "scale": asked.scale,
        "PRECISION": _precision(query.dtype, width),
    }
    pairs = batches * sizes["groups"]
    block = _blocks_for_queries(width, query.dtype)
    in_blocks = _in_blocks(bounds and bounds.queries, bounds, sizes["queries"], block["ROWS"], sizes["shared"])
    seen = _seen(asked, sizes, batches, block)
    triton_backward.backward_of_queries[(in_blocks["blocks"] * pairs,)](
        to_query,
        *tensors,
        sums,
        inner,
        **_listed(seen),
        **in_blocks,
        **_places(to_query=to_query),
        **given,
        **block,
    )
    block = _blocks_for_keys(width, query)
    in_blocks = _in_blocks(bounds and bounds.keys, bounds, sizes["keys"], block["KEYS"])
    seen = _seen(asked, sizes, batches, block)
    triton_backward.backward_of_keys[(in_blocks["blocks"] * pairs,)](
        to_key,
        to_value,
        *tensors,
        sums,
        inner,
        **_listed(None if seen is None else seen.mT.contiguous()),
        **in_blocks,
        **_places(to_key=to_key, to_value=to_value),
        **given,
        **block,
    )


def _as_batch(rows: Tensor) -> Tensor:
    """(1, head, row, size) of (row, head, size)."""
    return rows.transpose(0, 1).unsqueeze(0)


def _bounds(query: Tensor, key: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor) -> Bounds:
    """The bounds, once they are seen to be some; a graph's capture cannot look at them."""
    if not (query.is_cuda and torch.cuda.is_current_stream_capturing()):
        reference.bounds("cu_seq_q", cu_seq_q, len(query))
        reference.bounds("cu_seq_k", cu_seq_k, len(key))
    return Bounds(cu_seq_q.contiguous(), cu_seq_k.contiguous())


def attention_varlen(
    results: tuple[Tensor, Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    philox_key: Tensor | None,
    dropout_p: float,
    left: int,
    right: int,
    scale: float,
    num_splits: int,
    seqused_k: Tensor | None,
    block_table: Tensor | None,
) -> bool:
    """The output and the log-sum-exp; see `reference.attention_varlen`. False only for what has no elements."""
    key, value, cu_seq_k = reference.in_use(key, value, cu_seq_k, seqused_k, block_table)
    bounds = _bounds(query, key, cu_seq_q, cu_seq_k)
    if not all(tensor.numel() for tensor in (query, key, value)):
        return False
    asked = Options(None, philox_key, dropout_p, left, right, 0, scale)
    output, sums = results
    with current(query):
        batch = (in_rows(_as_batch(tensor)) for tensor in (query, key, value))
        _attend((_as_batch(output), sums.unsqueeze(0)), *batch, asked, bounds, num_splits)
    return True


def attention_varlen_backward(
    results: tuple[Tensor, ...],
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    philox_key: Tensor | None,
    dropout_p: float,
    left: int,
    right: int,
    scale: float,
) -> bool:
    """The gradients to query, key and value. False only for what has no elements."""
    bounds = _bounds(query, key, cu_seq_q, cu_seq_k)
    if not all(tensor.numel() for tensor in (query, key, value)):
        return False
    asked = Options(None, philox_key, dropout_p, left, right, 0, scale)
    with current(query):
        batch = (in_rows(_as_batch(tensor)) for tensor in (grad, query, key, value))
        _differentiate([*map(_as_batch, results)], *batch, asked=asked, bounds=bounds)
    return True
