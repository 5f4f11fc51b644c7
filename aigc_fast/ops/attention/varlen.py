"""Attention within sequences of different lengths that are packed one after the other, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from aigc_fast.ops.attention.choice import leave_varlen, pytorchs_varlen
from aigc_fast.ops.attention.operators import VARLEN
from aigc_fast.ops.attention.reference import bounds
from aigc_fast.ops.random.operators import draw_key
from aigc_fast.runtime import rows
from aigc_fast.runtime.arguments import check_probability, check_types, number
from aigc_fast.runtime.autocast import autocast, has_autocast
from aigc_fast.runtime.backends import leave_to_pytorch
from aigc_fast.runtime.recording import is_symbolic, record


class AuxRequest(Protocol):
    """`torch.nn.attention.varlen.AuxRequest`, which an old torch lacks.

    Attributes:
        lse: whether the log-sum-exp of the scores is wanted too.
    """

    lse: bool


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None = None,
    max_q: int | None = None,
    max_k: int | None = None,
    *,
    return_aux: AuxRequest | None = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
    dropout_p: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention inside each of several sequences without padding, `torch.nn.attention.varlen.varlen_attn`.

    What PyTorch has for CUDA alone, on the CPU, in float32 too: each sequence by `scaled_dot_product_attention`'s
    kernels, long ones on all threads, short ones side by side. On CUDA in 16 bits PyTorch's own kernel computes what it
    can. Method: Dao et al., "FlashAttention", 2022; pages of keys and values: Kwon et al., "PagedAttention", 2023.

    Args:
        query: (T_q, H, E), the queries of all sequences, one sequence after the other; any strides.
        key: (T_k, H, E), of query's dtype; (T_k, G, E) with `enable_gqa`. With `block_table`, pages of keys:
            (pages, page size, H or G, E).
        value: (T_k, H, V), of query's dtype; (T_k, G, V) with `enable_gqa`. With `block_table`, pages of values:
            (pages, page size, H or G, V).
        cu_seq_q: integers, (N + 1,), from 0 to T_q: sequence n has the queries cu_seq_q[n] to cu_seq_q[n + 1] - 1.
        cu_seq_k: the same for keys and values; `cu_seq_q` by default. Ignored with `block_table`.
        max_q: the greatest number of queries; optional, as `cu_seq_q` tells it.
        max_k: the same for keys.
        return_aux: if its `lse` is true, the log-sum-exp is returned as well.
        scale: 1 / sqrt(E) by default.
        window_size: (left, right), how many keys a query sees on each side; -1 for no limit, (-1, 0) for causal
            attention. The last query of a sequence is aligned with its last key, whatever the lengths.
        enable_gqa: whether H may be a multiple of G: each H / G consecutive query heads share a key and value head.
        seqused_k: integers, (N,): only the first seqused_k[n] keys of sequence n are used, as in a cache with room
            left. For inference only, as in PyTorch.
        block_table: integers, (N, pages of the longest sequence): the pages of each sequence, in order; requires
            `seqused_k`. For inference only, as in PyTorch.
        num_splits: into how many parts the keys are split where there are few queries; with 1, a sequence's result
            does not depend on the other sequences, to the bit; None and 0 leave it to the kernel. The reference does
            not split.
        dropout_p: the probability of dropping an element of the softmax; the others are scaled by 1 / (1 - p). For
            training: not with `seqused_k`.
        generator: the source of dropout's key; None for PyTorch's default generator.

    Returns:
        (T_q, H, V), of query's dtype; zeros for queries that see no key. With `return_aux.lse` also (H, T_q), float64
        for a float64 query, else float32: the logarithm of each softmax's denominator, minus infinity for no key; it
        has no gradient.

    Raises:
        RuntimeError: if shapes, dtypes, devices or bounds do not match; the message names the argument.
        TypeError: if an argument is not a Tensor, or `return_aux` has no `lse`.
        ValueError: if `window_size`, `num_splits` or `dropout_p` is invalid.
    """
    tensors, optional = (query, key, value, cu_seq_q, cu_seq_k), {"seqused_k": seqused_k, "block_table": block_table}
    if is_symbolic(*tensors, *optional.values()):
        numbers = {"scale": scale, "window_size": window_size, "enable_gqa": enable_gqa, "num_splits": num_splits}
        numbers |= {"dropout_p": dropout_p, "generator": generator}
        return record(varlen_attn, *tensors, max_q, max_k, return_aux=return_aux, **numbers, **optional)
    cu_seq_k = cu_seq_q if cu_seq_k is None or block_table is not None else cu_seq_k
    check_types(query=query, key=key, value=value)
    if has_autocast(query):
        query, key, value = autocast((query, key, value))
    paged = block_table is not None
    _check(query, key, value, enable_gqa, paged)
    _check_bounds("cu_seq_q", cu_seq_q, query)
    _check_bounds("cu_seq_k", cu_seq_k, query)
    if cu_seq_q.shape != cu_seq_k.shape:
        raise RuntimeError(f"cu_seq_k has shape {tuple(cu_seq_k.shape)}: expected cu_seq_q's {tuple(cu_seq_q.shape)}")
    _check_cache(query, key, value, len(cu_seq_q) - 1, seqused_k, block_table)
    left, right = _sides(window_size)
    wants_sums = _wants_sums(return_aux)
    if scale is None:
        scale = query.size(-1) ** -0.5 if query.size(-1) else 1.0
    scale = number("scale", scale)
    cache = _splits(num_splits), seqused_k, block_table
    is_plain = seqused_k is None and not (dropout_p or wants_sums or cache[0])
    if (reason := leave_varlen(query, key, value, scale, is_plain)) is not None:
        leave_to_pytorch(VARLEN.name, reason)
        return _by_pytorch(query, key, value, cu_seq_q, cu_seq_k, (left, right), scale)
    philox_key = _key_of_dropout(query, dropout_p, generator, seqused_k)
    if philox_key is not None and rows.layouts and generator is None:
        philox_key = _of_whole(philox_key, len(cu_seq_q) - 1)
    rest = philox_key, float(dropout_p), left, right, scale
    output, sums = VARLEN(query, key, value, cu_seq_q, cu_seq_k, *rest, *cache)
    return (output, sums) if wants_sums else output


def _by_pytorch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    window_size: tuple[int, int],
    scale: float,
) -> Tensor:
    """The output by PyTorch's own function, once the bounds are seen to be some."""
    of_both = bounds("cu_seq_q", cu_seq_q, len(query)), bounds("cu_seq_k", cu_seq_k, len(key))
    longest = (max(last - first for first, last in pairwise(found)) for found in of_both)
    given = (cumulated.int().contiguous() for cumulated in (cu_seq_q, cu_seq_k))
    grouped = key.shape[1] != query.shape[1]
    shared = {"enable_gqa": True} if grouped else {}
    return pytorchs_varlen(grouped)(query, key, value, *given, *longest, scale=scale, window_size=window_size, **shared)


def _wants_sums(return_aux: Any) -> bool:
    if return_aux is None:
        return False
    if not hasattr(return_aux, "lse"):
        raise TypeError(f"return_aux is {type(return_aux).__name__}: expected an AuxRequest, which has `lse`")
    return bool(return_aux.lse)


def _splits(num_splits: Any) -> int:
    if num_splits is None:
        return 0
    if not isinstance(num_splits, int) or num_splits < 0:
        raise ValueError(f"num_splits={num_splits!r}: expected an integer of at least 0, or None")
    return int(num_splits)


def _key_of_dropout(
    query: Tensor, dropout_p: float, generator: torch.Generator | None, seqused_k: Tensor | None
) -> Tensor | None:
    check_probability("dropout_p", dropout_p)
    if dropout_p and seqused_k is not None:
        raise ValueError(f"dropout_p={dropout_p}: expected 0 with seqused_k, which is for inference only")
    return draw_key(query, generator) if dropout_p else None


def _of_whole(key: Tensor, sequences: int) -> Tensor:
    """The key for sequences whose whole has others before them: each has 2³² counters for itself."""
    here = rows.layouts.get(sequences)
    return key if here is None else key + key.new_tensor([0, here.places.start << 32])


def _sides(window_size: Any) -> tuple[int, int]:
    fits = isinstance(window_size, Sequence) and len(window_size) == 2
    if not fits or any(not isinstance(side, int) or side < -1 for side in window_size):
        raise ValueError(f"window_size={window_size!r}: expected (left, right), two integers, each at least -1")
    return tuple(window_size)


def _check(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool, paged: bool) -> None:
    shared = "(pages, page size, heads, size)" if paged else "(total length, heads, size)"
    for name, tensor, wanted in (
        ("query", query, "(total length, heads, size)"),
        ("key", key, shared),
        ("value", value, shared),
    ):
        if tensor.dim() != wanted.count(",") + 1:
            raise RuntimeError(f"{name} has shape {tuple(tensor.shape)}: expected {wanted}")
        if tensor.dtype != query.dtype or not tensor.is_floating_point():
            raise RuntimeError(
                f"{name} has dtype {tensor.dtype}: expected query's {query.dtype}, a floating-point type"
            )
        if tensor.device != query.device:
            raise RuntimeError(f"{name} is on {tensor.device}: expected query's device {query.device}")
    if key.shape[-1] != query.shape[2]:
        raise RuntimeError(f"key has size {key.shape[-1]} in its last dimension: expected query's {query.shape[2]}")
    if value.shape[:-1] != key.shape[:-1]:
        raise RuntimeError(
            f"value has shape {tuple(value.shape)}: expected key's sizes before it, {(*key.shape[:-1],)}"
        )
    heads, groups = query.shape[1], key.shape[-2]
    if groups != heads and not (enable_gqa and groups > 0 and heads % groups == 0):
        wanted = "a divisor of query's" if enable_gqa else "query's"
        raise RuntimeError(f"key has {groups} heads: expected {wanted} {heads}")


def _check_cache(
    query: Tensor, key: Tensor, value: Tensor, count: int, seqused_k: Tensor | None, block_table: Tensor | None
) -> None:
    for name, given, dims in (("seqused_k", seqused_k, 1), ("block_table", block_table, 2)):
        if given is None:
            continue
        _check_integers(name, given, query, f"({count}, ...)" if dims == 2 else f"({count},)")
        if given.dim() != dims or len(given) != count:
            raise RuntimeError(f"{name} has shape {tuple(given.shape)}: expected {count} sequences, {dims} dimensions")
        if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
            raise RuntimeError(f"{name} is for inference only: expected no gradient to query, key or value")
    if block_table is not None and seqused_k is None:
        raise RuntimeError("seqused_k is None: expected the number of keys of each sequence of block_table")


def _check_bounds(name: str, bounds: Tensor, query: Tensor) -> None:
    _check_integers(name, bounds, query, "(sequences + 1,)")
    if bounds.dim() != 1 or bounds.numel() == 0:
        raise RuntimeError(f"{name} has shape {tuple(bounds.shape)}: expected (sequences + 1,)")


def _check_integers(name: str, tensor: Tensor, query: Tensor, wanted: str) -> None:
    check_types(**{name: tensor})
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise RuntimeError(f"{name} has shape {tuple(tensor.shape)}, {tensor.dtype}: expected integers {wanted}")
    if tensor.device != query.device:
        raise RuntimeError(f"{name} is on {tensor.device}: expected query's device {query.device}")
