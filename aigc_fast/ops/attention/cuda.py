"""The native kernel of csrc/cuda/attention.cu: few queries, the keys in parts."""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from aigc_fast.ops.attention.reference import Options
from aigc_fast.ops.attention.sizes import count_parts, in_rows, seen_keys, sides
from aigc_fast.runtime import devices, native
from aigc_fast.runtime.devices import Reason, queue
from aigc_fast.runtime.dtypes import DTYPES, UP_TO_FLOAT32

MOST_QUERIES, MOST_SIZE = 16, 256
_MOST_KEYS = 2**31 - 17  # a tile's last one is counted in 32 bits
_KEYS_OF_BLOCK = 64  # that its warps take at a time
_ROWS_OF_BLOCK = {torch.float32: 8, torch.bfloat16: 16, torch.float16: 16}
_NO_MASK, _BOOLEAN, _OF_FLOAT32, _OF_THE_TENSORS = range(4)


def unsupported(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    philox_key: Tensor | None = None,
    *rest: object,
) -> Reason:
    """Why this backend cannot take these arguments, or None."""
    queries, keys, size = query.shape[-2], key.shape[-2], max(query.shape[-1], value.shape[-1])
    elsewhere = devices.cuda(query.dtype, query, key, value, mask)
    if elsewhere is not None:
        return elsewhere
    if philox_key is not None:
        return "dropout: the kernel for few queries has none"
    if queries > MOST_QUERIES:
        return f"{queries} queries: the kernel takes up to {MOST_QUERIES}"
    if size > MOST_SIZE:
        return f"heads of {size} numbers: the kernel takes up to {MOST_SIZE}"
    if keys > _MOST_KEYS:
        return f"{keys} keys: the kernel takes up to {_MOST_KEYS}"
    if query.dtype not in UP_TO_FLOAT32:
        return f"{query.dtype} is computed by the reference"
    if mask is not None and mask.dtype not in (torch.bool, torch.float32, query.dtype):
        return f"a mask of {mask.dtype} is computed by the reference"
    return None


def detail(*args: object) -> str:
    """What the kernel does."""
    return "few queries: keys in parts, read once for all heads that share them"


def count_parts_of(
    batches: int, heads: int, groups: int, queries: int, keys: int, dtype: torch.dtype, device: torch.device
) -> int:
    """Into how many parts the kernel cuts so many keys; `groups` of the heads have keys of their own."""
    blocks = batches * groups * -(-queries * heads // groups // _ROWS_OF_BLOCK[dtype])
    return count_parts(blocks, -(-keys // _KEYS_OF_BLOCK), device)


def _mask(mask: Tensor | None) -> tuple[int | None, bytes]:
    """Address, and kind and strides."""
    if mask is None:
        return None, struct.pack("5q", _NO_MASK, 0, 0, 0, 0)
    kind = {torch.bool: _BOOLEAN, torch.float32: _OF_FLOAT32}.get(mask.dtype, _OF_THE_TENSORS)
    return mask.data_ptr(), struct.pack("5q", kind, *mask.stride())


def attention(results: tuple[Tensor, Tensor], query: Tensor, key: Tensor, value: Tensor, *options: object) -> bool:
    """The output and the log-sum-exp; see `reference.attention`. False only for what has no elements."""
    if not all(tensor.numel() for tensor in (query, key, value)):
        return False
    asked, (output, sums) = Options(*options), results
    query, key, value = map(in_rows, (query, key, value))
    (batches, heads, queries, size), (_, groups, keys, _), value_size = query.shape, key.shape, value.shape[3]
    seen = seen_keys(asked, queries, keys)
    parts = count_parts_of(batches, heads, groups, queries, seen, query.dtype, query.device)
    of_parts, sums_of_parts = (
        None if parts == 1 else torch.empty((parts, *result.shape), dtype=torch.float32, device=query.device)
        for result in results
    )
    strides = [tensor.stride(dim) for tensor in (output, query, key, value) for dim in range(3)]
    left, right = sides(asked, queries, keys)
    sizes = batches, heads, groups, queries, keys, size, value_size, left, right, asked.offset, parts
    native.cuda.attention_few_queries(
        output.data_ptr(),
        sums.data_ptr(),
        None if of_parts is None else of_parts.data_ptr(),
        None if sums_of_parts is None else sums_of_parts.data_ptr(),
        query.data_ptr(),
        key.data_ptr(),
        value.data_ptr(),
        struct.pack("12q", *strides),
        *_mask(asked.mask),
        DTYPES[query.dtype],
        struct.pack("11q", *sizes),
        None,
        None,
        asked.scale,
        *queue(query),
    )
    return True
