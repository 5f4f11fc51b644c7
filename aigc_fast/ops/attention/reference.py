"""Attention in plain PyTorch (Vaswani et al., "Attention is all you need", 2017, equation 1)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from aigc_fast.ops.random.reference import beside, computing_dtype, dropout


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


def attention(query: Tensor, key: Tensor, value: Tensor, *options: object) -> tuple[Tensor, Tensor]:
    """softmax(scale * query key^T + mask) value, and the logarithm of the sum that the softmax divides by."""
    mask, philox_key, dropout_p, left, right, offset, scale = Options(*options)
    compute = computing_dtype(query.dtype)
    heads = query.shape[1]
    q, k, v = (tensor.to(compute) for tensor in (query, _per_query_head(key, heads), _per_query_head(value, heads)))
    scores = (q * scale) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.to(compute)
    seen = band(query.shape[2], key.shape[2], left, right, offset, query.device)
    if seen is not None:
        scores = scores.masked_fill(beside(~seen, scores), -torch.inf)
    # A row that sees no key has no softmax: it is given one, and its result is 0.
    blind = (scores == -torch.inf).all(-1, keepdim=True)
    probabilities = scores.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)
    logsumexp = scores.masked_fill(blind, 0).logsumexp(-1).masked_fill(blind.squeeze(-1), -torch.inf)
    if philox_key is not None:
        probabilities = dropout(probabilities, philox_key, dropout_p)
    return (probabilities @ v).to(query.dtype), logsumexp.detach()


def attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, logsumexp: Tensor, *options: object
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients to query, key and value. Differentiable."""
    return gradients(grad, query, key, value, *options)


def gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *options: object,
    of: Callable[..., tuple[Tensor, Tensor]] = attention,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by PyTorch's own differentiation, with a graph where one is asked for."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [own_variable(tensor, create_graph) for tensor in (query, key, value)]
        output, _ = of(*inputs, *options)
        return torch.autograd.grad(output, inputs, grad, create_graph=create_graph)


def own_variable(tensor: Tensor, keep_graph: bool) -> Tensor:
    """The tensor as a variable apart from others that may be the same tensor, on its graph where that is kept."""
    return tensor.view_as(tensor) if keep_graph and tensor.requires_grad else tensor.detach().requires_grad_()


def bounds(name: str, cumulated: Tensor, total: int) -> list[int]:
    """Where each sequence begins, and at last where they end: they rise from 0 to `total`."""
    found = cumulated.tolist()
    if found[0] != 0 or found[-1] != total or any(first > last for first, last in pairwise(found)):
        shown = found if len(found) < 9 else f"[{found[0]}, ..., {found[-1]}]"
        raise RuntimeError(f"{name} is {shown}: expected to rise from 0 to the total length, {total}")
    return found


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
    """`attention` of each sequence by itself, its last query at its last key: (T_q, H, V) and (H, T_q)."""
    outputs = [query.new_zeros(0, query.shape[1], value.shape[2])]
    sums = [query.new_zeros(query.shape[1], 0, dtype=computing_dtype(query.dtype))]
    of_queries, of_keys = bounds("cu_seq_q", cu_seq_q, len(query)), bounds("cu_seq_k", cu_seq_k, len(key))
    for (first, last), (first_key, last_key) in zip(pairwise(of_queries), pairwise(of_keys), strict=True):
        q, k, v = query[first:last], key[first_key:last_key], value[first_key:last_key]
        offset = len(k) - len(q)
        batch = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (q, k, v))
        output, logsumexp = attention(*batch, None, None, 0.0, left, right, offset, scale)
        outputs.append(output.squeeze(0).transpose(0, 1))
        sums.append(logsumexp.squeeze(0))
    return torch.cat(outputs), torch.cat(sums, 1)


def attention_varlen_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, logsumexp: Tensor, *options: object
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients to query, key and value. Differentiable."""
    return gradients(grad, query, key, value, *options, of=attention_varlen)
