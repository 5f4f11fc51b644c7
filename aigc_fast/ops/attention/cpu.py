"""The native CPU kernels of attention, over csrc/cpu/attention.cpp."""

from __future__ import annotations

import struct
from array import array

import torch
from torch import Tensor

from aigc_fast import _native
from aigc_fast.ops import support
from aigc_fast.ops.attention import reference
from aigc_fast.ops.attention.reference import Options
from aigc_fast.ops.support import DTYPES, UP_TO_FLOAT32, factors_of, on_huge_pages

_NO_MASK, _BOOLEAN = (-1, 0, 0, 0, 0), 4
# By the number of tensors besides query, key and value.
_PACKED = {rows: struct.Struct(f"{15 + 3 * (3 + rows)}q") for rows in (1, 5)}
_MOST_KEYS = 2**31 - 1


def unsupported(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *rest: object) -> support.Reason:
    """Why this backend cannot take these arguments, or None."""
    if key.shape[2] > _MOST_KEYS:
        return f"{key.shape[2]} keys: the kernels count to {_MOST_KEYS}"
    if mask is not None and mask.dtype not in (torch.bool, *UP_TO_FLOAT32):
        return f"a mask of {mask.dtype} is computed by the reference"
    return support.cpu(query, query.dtype, UP_TO_FLOAT32)


def backward_unsupported(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: object) -> support.Reason:
    """Why this backend cannot take these arguments, or None."""
    return unsupported(query, key, value, rest[2], *rest[3:])


def detail(query: Tensor, key: Tensor, *rest: object) -> str:
    """Which kernel takes these arguments, and on which instruction set."""
    heads_per_key = query.shape[1] // max(1, key.shape[1])
    few = heads_per_key * query.shape[2] <= _native.cpu.kernels.attention_few_queries()
    if few:
        return f"few queries: keys and values are read once; {_native.cpu.level}"
    pairs = _native.cpu.kernels.attention_uses_pairs(factors_of(query.dtype))
    products = "products of bfloat16" if pairs else "products of float32"
    return f"blocks of queries: hidden blocks of keys are skipped; {products}; {_native.cpu.level}"


def _rows(tensor: Tensor) -> Tensor:
    """The tensor with contiguous elements in every row, itself where it has them."""
    return tensor if tensor.stride(3) == 1 or tensor.shape[3] == 1 else tensor.contiguous()


def _layout(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, band: tuple[int, int, int], *rows: Tensor
) -> bytes:
    """Sizes and strides in the order that csrc/cpu/attention.cpp reads them."""
    (batches, heads, queries, size), (_, kv_heads, keys, _) = query.shape, key.shape
    values = [batches, heads, kv_heads, queries, keys, size, value.size(3), *band]
    if mask is None:
        values += _NO_MASK
    else:
        values += (_BOOLEAN if mask.dtype == torch.bool else DTYPES[mask.dtype], *mask.stride())
    for tensor in (query, key, value, *rows):
        values += tensor.stride()[:3]
    return _PACKED[len(rows)].pack(*values)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def empty_like_rows(tensor: Tensor, size: int) -> Tensor:
    """(batch, head, row, size) with the order of dimensions that `tensor` has in memory."""
    batches, heads, rows, _ = tensor.shape
    if heads > 1 and tensor.stride(1) < tensor.stride(2):
        return tensor.new_empty((batches, rows, heads, size)).transpose(1, 2)
    return tensor.new_empty((batches, heads, rows, size))


def _as_batch(rows: Tensor) -> Tensor:
    """(1, head, row, size) of (row, head, size)."""
    return rows.transpose(0, 1).unsqueeze(0)


def attention(query: Tensor, key: Tensor, value: Tensor, *options: object) -> tuple[Tensor, Tensor]:
    """The output and the log-sum-exp; see `reference.attention`."""
    query, key, value, asked = _rows(query), _rows(key), _rows(value), Options(*options)
    output = on_huge_pages(empty_like_rows(query, value.shape[3]))
    if output.numel() == 0:
        return reference.attention(query, key, value, *options)
    logsumexp = torch.empty(query.shape[:3], dtype=torch.float32)
    _native.cpu.kernels.attention(
        query.data_ptr(),
        key.data_ptr(),
        value.data_ptr(),
        _address(asked.mask),
        output.data_ptr(),
        logsumexp.data_ptr(),
        DTYPES[query.dtype],
        _layout(query, key, value, asked.mask, asked[3:6], output),
        factors_of(query.dtype),
        asked.scale,
        _address(asked.philox_key),
        asked.dropout_p,
    )
    return output, logsumexp


def attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, logsumexp: Tensor, *options: object
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients to query, key and value; see `reference.attention_backward`."""
    grad, query, key, value, output = (_rows(tensor) for tensor in (grad, query, key, value, output))
    asked = Options(*options)
    results = tuple(on_huge_pages(empty_like_rows(tensor, tensor.shape[3])) for tensor in (query, key, value))
    if output.numel() == 0 or key.numel() == 0:
        return tuple(result.zero_() for result in results)
    _native.cpu.kernels.attention_backward(
        query.data_ptr(),
        key.data_ptr(),
        value.data_ptr(),
        _address(asked.mask),
        grad.data_ptr(),
        output.data_ptr(),
        logsumexp.contiguous().data_ptr(),
        *(result.data_ptr() for result in results),
        DTYPES[query.dtype],
        _layout(query, key, value, asked.mask, asked[3:6], grad, output, *results),
        asked.scale,
        _address(asked.philox_key),
        asked.dropout_p,
    )
    return results


def takes_at_once(query: Tensor) -> bool:
    """Whether `attend_at_once` takes plain calls with such queries."""
    reason = support.cpu(query, query.dtype, UP_TO_FLOAT32)
    return _native.takes_tensors and reason is None and query.dim() in (3, 4)


def attend_at_once(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, grouped: bool, scale: float | None
) -> Tensor | None:
    """The output of a call at which nothing has looked yet, or None where it is not a plain one on the CPU.

    What other calls cost before and after the kernel is more than the kernel of a small one.
    """
    if not query.is_cpu:
        return None
    output = on_huge_pages(torch.empty_like(query))
    kernel, factors = _native.cpu.kernels.attention_of_tensors, factors_of(query.dtype)
    scaled = scale is not None
    taken = kernel(query, key, value, mask, output, causal, grouped, factors, scaled, scale if scaled else 0.0)
    return output if taken else None


def _packed_bounds(query: Tensor, key: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor) -> tuple[bytes, bytes, int]:
    """Where each sequence begins, in queries and in keys, and how many sequences there are."""
    of_queries = reference.bounds("cu_seq_q", cu_seq_q, len(query))
    of_keys = reference.bounds("cu_seq_k", cu_seq_k, len(key))
    return array("q", of_queries).tobytes(), array("q", of_keys).tobytes(), len(of_queries) - 1


def attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    left: int,
    right: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The output and the log-sum-exp; see `reference.attention_varlen`."""
    bounds = _packed_bounds(query, key, cu_seq_q, cu_seq_k)
    total, heads, _ = query.shape
    output = on_huge_pages(query.new_empty(total, heads, value.shape[2]))
    logsumexp = query.new_empty((heads, total), dtype=torch.float32)
    query, key, value, rows = (_rows(_as_batch(tensor)) for tensor in (query, key, value, output))
    if output.numel() > 0:
        _native.cpu.kernels.attention_varlen(
            query.data_ptr(),
            key.data_ptr(),
            value.data_ptr(),
            output.data_ptr(),
            logsumexp.data_ptr(),
            DTYPES[query.dtype],
            _layout(query, key, value, None, (left, right, 0), rows),
            factors_of(query.dtype),
            scale,
            *bounds,
        )
    return output, logsumexp


def attention_varlen_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    left: int,
    right: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients to query, key and value."""
    bounds = _packed_bounds(query, key, cu_seq_q, cu_seq_k)
    results = tuple(on_huge_pages(tensor.new_empty(tensor.shape)) for tensor in (query, key, value))
    if output.numel() == 0 or key.numel() == 0:
        return tuple(result.zero_() for result in results)
    grad, query, key, value, output = (_rows(_as_batch(tensor)) for tensor in (grad, query, key, value, output))
    _native.cpu.kernels.attention_varlen_backward(
        query.data_ptr(),
        key.data_ptr(),
        value.data_ptr(),
        grad.data_ptr(),
        output.data_ptr(),
        logsumexp.contiguous().data_ptr(),
        *(result.data_ptr() for result in results),
        DTYPES[query.dtype],
        _layout(query, key, value, None, (left, right, 0), grad, output, *map(_as_batch, results)),
        scale,
        *bounds,
    )
    return results
