"""Attention in plain PyTorch (Vaswani et al., "Attention is all you need", 2017, equation 1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from aigc_fast.ops.random.philox import beside
from aigc_fast.ops.random.reference import dropout
from aigc_fast.runtime.arguments import numbers_of
from aigc_fast.runtime.dtypes import computing_dtype


class Options(NamedTuple):
    """What an attention is asked for besides query, key and value, in the op's order.

    Attributes:
        mask: over (batch, heads, queries, keys): bool, True is seen, or what is added to the scores; or None.
        philox_key: of dropout; None without it.
        dropout_p: the probability that an element of the softmax is dropped.
        left, right, offset: as for `band`.
        scale: of the scores.
    """

    mask: Tensor | None
    philox_key: Tensor | None
    dropout_p: float
    left: int
    right: int
    offset: int
    scale: float


def band(queries: int, keys: int, left: int, right: int, offset: int, device: torch.device) -> Tensor | None:
    """Which keys a query sees: bool, (queries, keys); None where every query sees every key.

    Args:
        queries: how many.
        keys: how many.
        left: query i sees no key before i + offset - left; below 0: no limit.
        right: query i sees no key after i + offset + right; below 0: no limit.
        offset: where the first query stands among the keys.
        device: of the result.
    """
    if left < 0 and right < 0:
        return None
    distance = torch.arange(keys, device=device) - torch.arange(queries, device=device)[:, None] - offset
    seen = torch.ones_like(distance, dtype=torch.bool)
    if left >= 0:
        seen = seen & (distance >= -left)
    if right >= 0:
        seen = seen & (distance <= right)
    return seen


def _per_query_head(tensor: Tensor, heads: int) -> Tensor:
    shared = heads // max(1, tensor.shape[1])
    return tensor if shared <= 1 else tensor.repeat_interleave(shared, dim=1)


def _per_key_head(tensor: Tensor, heads: int) -> Tensor:
    return tensor if tensor.shape[1] == heads else tensor.unflatten(1, (heads, -1)).sum(2)


def attention(query: Tensor, key: Tensor, value: Tensor, *options: object) -> tuple[Tensor, Tensor]:
    """softmax(scale * query key^T + mask) value, and the logarithm of the sum that the softmax divides by."""
    asked = Options(*options)
    q, k, v = _computed(query, key, value)
    probabilities, logsumexp = _softmax(q, k, asked)
    return (_dropped(probabilities, asked) @ v).to(query.dtype), logsumexp.detach()


def attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *options: object
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients to query, key and value. Differentiable, and in closed form: no graph is recorded below autograd.

    With P the softmax, M the dropout's factors and G the gradient to the output: dP = M * G V^T,
    dS = P * (dP - rowsum(P * dP)); dQ = scale dS K, dK = scale dS^T Q, dV = (M * P)^T G.
    """
    asked = Options(*options)
    q, k, v = _computed(query, key, value)
    g = grad.to(q.dtype)
    probabilities, _ = _softmax(q, k, asked)
    to_probabilities = _dropped(g @ v.mT, asked)
    inner = (probabilities * to_probabilities).sum(-1, keepdim=True)
    to_scores = probabilities * (to_probabilities - inner) * asked.scale
    to_key = _per_key_head(to_scores.mT @ q, key.shape[1])
    to_value = _per_key_head(_dropped(probabilities, asked).mT @ g, key.shape[1])
    return (to_scores @ k).to(query.dtype), to_key.to(key.dtype), to_value.to(value.dtype)


def _computed(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In the dtype that is computed in, with a key and a value head per query head."""
    compute, heads = computing_dtype(query.dtype), query.shape[1]
    return query.to(compute), *(_per_query_head(tensor, heads).to(compute) for tensor in (key, value))


def _softmax(query: Tensor, key: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """The softmax of the scores that a query sees, and the logarithm of the sum that it divides by."""
    mask, _, _, left, right, offset, scale = options
    scores = (query * scale) @ key.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.to(scores.dtype)
    seen = band(query.shape[2], key.shape[2], left, right, offset, query.device)
    if seen is not None:
        scores = scores.masked_fill(beside(~seen, scores), -torch.inf)
    # The softmax of a row that sees no key is undefined: it is given one, and its result is 0.
    blind = (scores == -torch.inf).all(-1, keepdim=True)
    scores = scores.masked_fill(blind, 0)
    logsumexp = scores.logsumexp(-1).masked_fill(blind.squeeze(-1), -torch.inf)
    return scores.softmax(-1).masked_fill(blind, 0), logsumexp


def _dropped(probabilities: Tensor, options: Options) -> Tensor:
    if options.philox_key is None:
        return probabilities
    return dropout(probabilities, options.philox_key, options.dropout_p)


def bounds(name: str, cumulated: Tensor, total: int) -> list[int]:
    """Where each sequence begins, and at last where they end: they rise from 0 to `total`."""
    found = numbers_of(cumulated)
    if found[0] != 0 or found[-1] != total or any(first > last for first, last in pairwise(found)):
        shown = found if len(found) < 9 else f"[{found[0]}, ..., {found[-1]}]"
        raise RuntimeError(f"{name} is {shown}: expected to rise from 0 to the total length, {total}")
    return found


def in_use(
    key: Tensor, value: Tensor, cu_seq_k: Tensor, seqused_k: Tensor | None, block_table: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and their bounds without what `seqused_k` leaves out, from pages in order where there are any."""
    if seqused_k is None:
        return key, value, cu_seq_k
    lengths = numbers_of(seqused_k)
    pages = None if block_table is None else block_table.tolist()
    if pages is None:
        room = [last - first for first, last in pairwise(bounds("cu_seq_k", cu_seq_k, len(key)))]
    else:
        room = [len(row) * key.shape[1] for row in pages]
    if any(not 0 <= length <= most for length, most in zip(lengths, room, strict=True)):
        raise RuntimeError(f"seqused_k is {lengths}: expected none below 0 or above what there is, {room}")
    steps = [torch.arange(length, device=key.device) for length in lengths]
    if pages is None:
        rows = [first + step for first, step in zip(numbers_of(cu_seq_k), steps, strict=False)]
    else:
        rows = [_rows_of_pages(row, step, key.shape[:2]) for row, step in zip(block_table.long(), steps, strict=True)]
        key, value = key.flatten(0, 1), value.flatten(0, 1)
    taken = torch.cat([cu_seq_k.new_zeros(0, dtype=torch.int64), *rows])
    return key[taken], value[taken], torch.tensor([0, *accumulate(lengths)], device=key.device)


def _rows_of_pages(pages: Tensor, step: Tensor, shape: Sequence[int]) -> Tensor:
    """Where the keys of one sequence stand among those of all pages."""
    count, size = shape
    used = pages[step // max(1, size)]
    if bool(((used < 0) | (used >= count)).any()):
        raise RuntimeError(f"block_table holds {used.unique().tolist()}: expected pages from 0 to {count - 1}")
    return used * size + step % max(1, size)


def _sequences(cu_seq_q: Tensor, cu_seq_k: Tensor, queries: int, keys: int) -> Iterator[tuple[slice, slice]]:
    """Where each sequence's queries and keys stand."""
    of_queries, of_keys = bounds("cu_seq_q", cu_seq_q, queries), bounds("cu_seq_k", cu_seq_k, keys)
    for of_query, of_key in zip(pairwise(of_queries), pairwise(of_keys), strict=True):
        yield slice(*of_query), slice(*of_key)


def _batch(*rows: Tensor) -> list[Tensor]:
    """(1, H, T, E) of each (T, H, E)."""
    return [tensor.transpose(0, 1).unsqueeze(0) for tensor in rows]


def _key_of(number: int, philox_key: Tensor | None) -> Tensor | None:
    """Of a sequence, which has a part of the draw to itself."""
    return None if philox_key is None else philox_key + philox_key.new_tensor([0, number << 32])


def attention_varlen(
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
) -> tuple[Tensor, Tensor]:
    """`attention` of each sequence by itself, its last query at its last key: (T_q, H, V) and (H, T_q)."""
    key, value, cu_seq_k = in_use(key, value, cu_seq_k, seqused_k, block_table)
    outputs = [query.new_zeros(0, query.shape[1], value.shape[2])]
    sums = [query.new_zeros(query.shape[1], 0, dtype=computing_dtype(query.dtype))]
    for number, (of_query, of_key) in enumerate(_sequences(cu_seq_q, cu_seq_k, len(query), len(key))):
        q, k, v = _batch(query[of_query], key[of_key], value[of_key])
        offset = k.shape[2] - q.shape[2]
        output, logsumexp = attention(q, k, v, None, _key_of(number, philox_key), dropout_p, left, right, offset, scale)
        outputs.append(output.squeeze(0).transpose(0, 1))
        sums.append(logsumexp.squeeze(0))
    return torch.cat(outputs), torch.cat(sums, 1)


def attention_varlen_backward(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients to query, key and value. Differentiable."""
    found = [[tensor[:0]] for tensor in (query, key, value)]
    for number, (of_query, of_key) in enumerate(_sequences(cu_seq_q, cu_seq_k, len(query), len(key))):
        g, q, k, v = _batch(grad[of_query], query[of_query], key[of_key], value[of_key])
        offset = k.shape[2] - q.shape[2]
        gradients = attention_backward(
            g, q, k, v, None, _key_of(number, philox_key), dropout_p, left, right, offset, scale
        )
        for list_of, gradient in zip(found, gradients, strict=True):
            list_of.append(gradient.squeeze(0).transpose(0, 1))
    return tuple(torch.cat(gradients) for gradients in found)
