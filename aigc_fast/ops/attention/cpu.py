"""The native CPU kernels of attention, over csrc/cpu/attention.cpp."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from aigc_fast.ops.attention import reference
from aigc_fast.ops.attention.reference import Options
from aigc_fast.ops.attention.sizes import in_rows
from aigc_fast.runtime import devices, native
from aigc_fast.runtime.devices import Reason
from aigc_fast.runtime.dtypes import DTYPES, UP_TO_FLOAT32
from aigc_fast.runtime.memory import placed
from aigc_fast.runtime.precision import factors_of

# By the number of tensors besides query, key and value.
_PACKED = {rows: struct.Struct(f"{10 + 3 * (3 + rows)}q") for rows in (1, 4)}
_MOST_KEYS = 2**31 - 1


def unsupported(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *rest: object) -> Reason:
    """Why this backend cannot take these arguments, or None."""
    if key.shape[2] > _MOST_KEYS:
        return f"{key.shape[2]} keys: the kernels count to {_MOST_KEYS}"
    if mask is not None and mask.dtype not in (torch.bool, *UP_TO_FLOAT32):
        return f"a mask of {mask.dtype} is computed by the reference"
    return devices.cpu(query, query.dtype, UP_TO_FLOAT32)


def backward_unsupported(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: object) -> Reason:
    """Why this backend cannot take these arguments, or None."""
    return unsupported(query, key, value, *rest)


def detail(query: Tensor, key: Tensor, *rest: object) -> str:
    """Which kernel takes these arguments, and on which instruction set."""
    heads_per_key = query.shape[1] // max(1, key.shape[1])
    few = heads_per_key * query.shape[2] <= native.kernels().attention_few_queries()
    if few:
        return f"few queries: keys and values are read once; {native.level()}"
    pairs = native.kernels().attention_uses_pairs(factors_of(query.dtype))
    products = "products of bfloat16" if pairs else "products of float32"
    return f"blocks of queries: hidden blocks of keys are skipped; {products}; {native.level()}"


def _layout(query: Tensor, key: Tensor, value: Tensor, left: int, right: int, *rows: Tensor) -> bytes:
    """Sizes and strides of all sequences in the order that csrc/cpu/attention.cpp reads them."""
    (batches, heads, queries, size), (_, kv_heads, keys, _) = query.shape, key.shape
    values = [batches, heads, kv_heads, queries, keys, size, value.size(3), left, right, 0]
    for tensor in (query, key, value, *rows):
        values += tensor.stride()[:3]
    return _PACKED[len(rows)].pack(*values)


def _as_batch(rows: Tensor) -> Tensor:
    """(1, head, row, size) of (row, head, size)."""
    return rows.transpose(0, 1).unsqueeze(0)


class RefusedError(RuntimeError):
    """The kernel does not take tensors that lie so."""


def _attend(
    results: tuple[Tensor, Tensor], query: Tensor, key: Tensor, value: Tensor, asked: Options, grouped: bool = True
) -> bool:
    return native.kernels().attention(
        query,
        key,
        value,
        asked.mask,
        *results,
        asked.left,
        asked.right,
        asked.offset,
        grouped,
        factors_of(query.dtype),
        True,
        asked.scale,
        asked.philox_key,
        asked.dropout_p,
    )


def attention(results: tuple[Tensor, Tensor], query: Tensor, key: Tensor, value: Tensor, *options: object) -> bool:
    """The output and the log-sum-exp; see `reference.attention`. False only for what has no elements."""
    asked = Options(*options)
    return _attend(results, query, key, value, asked) or _attend(
        results, in_rows(query), in_rows(key), in_rows(value), asked
    )


def attention_unseen(
    grouped: bool, results: tuple[Tensor, Tensor], query: Tensor, key: Tensor, value: Tensor, *options: object
) -> bool:
    """`attention` of arguments at which nothing has looked yet; heads may share keys and values where `grouped`.

    Raises:
        RefusedError, or what PyTorch raises, where they are not plain ones of four dimensions.
    """
    if not _attend(results, query, key, value, Options(*options), grouped):
        raise RefusedError
    return True


def _differentiate(results: Sequence[Tensor], *tensors: Tensor, asked: Options) -> bool:
    grad, query, key, value = tensors
    return native.kernels().attention_backward(
        query,
        key,
        value,
        asked.mask,
        grad,
        *results,
        asked.left,
        asked.right,
        asked.offset,
        asked.scale,
        asked.philox_key,
        asked.dropout_p,
    )


def attention_backward(
    results: tuple[Tensor, ...], grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *options: object
) -> bool:
    """The gradients; see `reference.attention_backward`. False only for what has no elements."""
    asked, tensors = Options(*options), (grad, query, key, value)
    return _differentiate(results, *tensors, asked=asked) or _differentiate(
        results, *map(in_rows, tensors), asked=asked
    )


def takes_at_once(query: Tensor) -> bool:
    """Whether `attend_at_once` takes plain calls with such queries."""
    reason = devices.cpu(query, query.dtype, UP_TO_FLOAT32)
    return native.takes_tensors and reason is None and query.dim() in (3, 4)


def attend_at_once(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, grouped: bool, scale: float | None
) -> Tensor | None:
    """The output of a call at which nothing has looked yet, or None where it is not a plain one on the CPU.

    What other calls cost before and after the kernel is more than the kernel of a small one.
    """
    if not query.is_cpu:
        return None
    output = placed(torch.empty_like(query))
    kernel, factors, right = native.kernels().attention, factors_of(query.dtype), 0 if causal else -1
    scaled = scale is not None
    rest = grouped, factors, scaled, scale if scaled else 0.0, None, 0.0
    taken = kernel(query, key, value, mask, output, None, -1, right, 0, *rest)
    return output if taken else None


def _packed_bounds(query: Tensor, key: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor) -> tuple[bytes, bytes, int]:
    """Where each sequence begins, in queries and in keys, and how many sequences there are."""
    of_queries = reference.bounds("cu_seq_q", cu_seq_q, len(query))
    of_keys = reference.bounds("cu_seq_k", cu_seq_k, len(key))
    return array("q", of_queries).tobytes(), array("q", of_keys).tobytes(), len(of_queries) - 1


def _address(philox_key: Tensor | None) -> int:
    return 0 if philox_key is None else philox_key.data_ptr()


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
    """The output and the log-sum-exp; see `reference.attention_varlen`."""
    key, value, cu_seq_k = reference.in_use(key, value, cu_seq_k, seqused_k, block_table)
    bounds = _packed_bounds(query, key, cu_seq_q, cu_seq_k)
    output, logsumexp = results
    query, key, value, rows = (in_rows(_as_batch(tensor)) for tensor in (query, key, value, output))
    if output.numel() > 0:
        native.kernels().attention_varlen(
            query.data_ptr(),
            key.data_ptr(),
            value.data_ptr(),
            output.data_ptr(),
            logsumexp.data_ptr(),
            DTYPES[query.dtype],
            _layout(query, key, value, left, right, rows),
            factors_of(query.dtype),
            num_splits,
            scale,
            _address(philox_key),
            dropout_p,
            *bounds,
        )
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
    """The gradients to query, key and value; false where there are keys without elements."""
    bounds = _packed_bounds(query, key, cu_seq_q, cu_seq_k)
    if grad.numel() == 0 or len(key) == 0:
        for result in results:
            result.zero_()
        return True
    if key.numel() == 0:
        return False
    grad, query, key, value = (in_rows(_as_batch(tensor)) for tensor in (grad, query, key, value))
    native.kernels().attention_varlen_backward(
        query.data_ptr(),
        key.data_ptr(),
        value.data_ptr(),
        grad.data_ptr(),
        *(result.data_ptr() for result in results),
        DTYPES[query.dtype],
        _layout(query, key, value, left, right, grad, *map(_as_batch, results)),
        scale,
        _address(philox_key),
        dropout_p,
        *bounds,
    )
    return True
