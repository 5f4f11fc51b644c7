"""The derivative of attention's backward pass, in closed form and a few heads at a time.

With S = scale Q K^T + mask, P = softmax(S), M the dropout's factors, G the gradient to the output, and (a, b, c) the
gradients to those of Q, K and V: dP = M * G V^T, D = rowsum(P * dP), dS = P * (dP - D), W = scale (a K^T + Q b^T),
r = rowsum(P * W), Y = M * G c^T + dP * (W - r) - D * W and Z = P * (Y - rowsum(P * Y)) give

    to G: (M * P * (W - r)) V + (M * P) c    to V: (M * P * (W - r))^T G
    to Q: scale (Z K + dS b)                 to K: scale (Z^T Q + dS^T a)
"""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast.ops.attention.reference import Options, band
from aigc_fast.ops.random.operators import DROPOUT
from aigc_fast.runtime.dtypes import computing_dtype

# Elements of the score matrix that are processed at a time: a few heads, which stay in the caches between the steps.
_ELEMENTS = 1 << 19


def double_backward(
    upstream: tuple[Tensor, Tensor, Tensor],
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *options: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients to `grad`, query, key and value from those to the gradients of query, key and value."""
    mask, philox_key, dropout_p, left, right, offset, scale = Options(*options)
    compute, device = computing_dtype(query.dtype), query.device
    (batches, heads, queries, _), keys, shared = query.shape, key.shape[2], query.shape[1] // key.shape[1]
    seen = band(queries, keys, left, right, offset, device)
    factors = None
    if philox_key is not None:
        ones = torch.ones((batches, heads, queries, keys), dtype=compute, device=device)
        factors = DROPOUT.run(ones, philox_key, dropout_p)
    results = [
        torch.empty((batches, heads, *t.shape[2:]), dtype=compute, device=device) for t in (grad, query, key, value)
    ]
    step = max(1, _ELEMENTS // max(1, queries * keys))
    for batch in range(batches):
        for first in range(0, heads, step):
            part = slice(first, min(heads, first + step))
            of_group = torch.arange(part.start, part.stop) // shared
            g, q, a = (t[batch, part].to(compute) for t in (grad, query, upstream[0]))
            k, v, b, c = (t[batch, of_group].to(compute) for t in (key, value, upstream[1], upstream[2]))
            found = _of_heads(
                (a, b, c),
                (g, q, k, v),
                None if mask is None else mask[batch, part],
                seen,
                None if factors is None else factors[batch, part],
                scale,
            )
            for result, values in zip(results, found, strict=True):
                result[batch, part] = values
    for index in (2, 3):
        if shared > 1:
            results[index] = results[index].unflatten(1, (-1, shared)).sum(2)
    return tuple(result.to(query.dtype) for result in results)


def _of_heads(
    upstream: tuple[Tensor, Tensor, Tensor],
    inputs: tuple[Tensor, Tensor, Tensor, Tensor],
    mask: Tensor | None,
    seen: Tensor | None,
    factors: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (a, b, c), (g, q, k, v) = upstream, inputs
    a, q = a * scale, q * scale
    p = torch.bmm(q, k.mT)
    if mask is not None:
        p = p.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else p.add_(mask)
    if seen is not None:
        p.masked_fill_(~seen, -torch.inf)
    # The softmax of a row that sees no key is undefined; its probabilities are 0.
    blind = (p == -torch.inf).all(-1, keepdim=True)
    p = p.softmax(-1).masked_fill_(blind, 0)
    dp = torch.bmm(g, v.mT)
    y = torch.bmm(g, c.mT)
    dropped = p
    if factors is not None:
        dp.mul_(factors)
        y.mul_(factors)
        dropped = p * factors
    delta = (p * dp).sum(-1, keepdim=True)
    w = torch.baddbmm(torch.bmm(a, k.mT), q, b.mT)
    y.addcmul_(delta, w, value=-1)
    w.sub_((p * w).sum(-1, keepdim=True))
    y.addcmul_(dp, w)
    x = w.mul_(dropped)
    to_g = torch.baddbmm(torch.bmm(x, v), dropped, c)
    to_v = torch.bmm(x.mT, g)
    z = y.sub_((p * y).sum(-1, keepdim=True)).mul_(p)
    ds = dp.sub_(delta).mul_(p)
    to_q = torch.baddbmm(torch.bmm(z, k), ds, b).mul_(scale)
    # q and a carry the scale.
    to_k = torch.baddbmm(torch.bmm(z.mT, q), ds.mT, a)
    return to_g, to_q, to_k, to_v
