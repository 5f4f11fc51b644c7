"""Attention of sequences of various lengths that lie one after the other, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aigc_fast.ops import support
from aigc_fast.ops.attention import cpu, reference
from aigc_fast.ops.operator import Operator
from aigc_fast.ops.random.reference import computing_dtype
from aigc_fast.ops.recording import is_symbolic, record

__all__ = ["VARLEN", "VARLEN_BACKWARD", "varlen_attn"]


def _fake(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    total, heads, _ = query.shape
    output = query.new_empty(total, heads, value.shape[2])
    return output, query.new_empty((heads, total), dtype=computing_dtype(query.dtype))


def _setup(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.left, ctx.right, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    query, key, value, cu_seq_q, cu_seq_k, output, logsumexp = ctx.saved_tensors
    options = cu_seq_q, cu_seq_k, ctx.left, ctx.right, ctx.scale
    return *VARLEN_BACKWARD(grad, query, key, value, output, logsumexp, *options), *[None] * 5


def _setup_backward(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.left, ctx.right, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _double_backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
    *tensors, output, logsumexp, cu_seq_q, cu_seq_k = ctx.saved_tensors
    keep_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [reference.own_variable(tensor, keep_graph) for tensor in tensors]
        rest = output, logsumexp, cu_seq_q, cu_seq_k, ctx.left, ctx.right, ctx.scale
        first = reference.attention_varlen_backward(*inputs, *rest)
        found = torch.autograd.grad(first, inputs, upstream, create_graph=keep_graph, allow_unused=True)
    return *found, *[None] * 7


def _fake_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in (query, key, value))


_INPUTS = "Tensor query, Tensor key, Tensor value, "
_OPTIONS = "Tensor cu_seq_q, Tensor cu_seq_k, int left, int right, float scale"

VARLEN = Operator(
    "attention_varlen",
    f"({_INPUTS}{_OPTIONS}) -> (Tensor, Tensor)",
    reference=reference.attention_varlen,
    fake=_fake,
    setup_context=_setup,
    backward=_backward,
)
VARLEN_BACKWARD = Operator(
    "attention_varlen_backward",
    f"(Tensor grad, {_INPUTS}Tensor output, Tensor logsumexp, {_OPTIONS}) -> (Tensor, Tensor, Tensor)",
    reference=reference.attention_varlen_backward,
    fake=_fake_backward,
    setup_context=_setup_backward,
    backward=_double_backward,
)


def _unsupported(query: Tensor, *rest: Any) -> support.Reason:
    return support.cpu(query, query.dtype, support.UP_TO_FLOAT32)


for _op in (VARLEN, VARLEN_BACKWARD):
    _op.choice.register("cpu", getattr(cpu, _op.name), _unsupported)
    _op.choice.register("reference", getattr(reference, _op.name))


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None = None,
    max_q: int | None = None,
    max_k: int | None = None,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """Attention inside each of several sequences without padding, `torch.nn.attention.varlen.varlen_attn`.

    What PyTorch has for CUDA alone, on the CPU, in float32 too: each sequence by `scaled_dot_product_attention`'s
    kernels, long ones on all threads, short ones side by side. Method: Dao et al., "FlashAttention", 2022.

    Args:
        query: (T_q, H, E), the queries of all sequences one after the other; any strides.
        key: (T_k, H, E), of query's dtype; (T_k, G, E) with `enable_gqa`.
        value: (T_k, H, V), of query's dtype; (T_k, G, V) with `enable_gqa`.
        cu_seq_q: integers, (N + 1,): sequence n has the queries from cu_seq_q[n] up to cu_seq_q[n + 1]; from 0 to T_q.
        cu_seq_k: the same for keys and values; `cu_seq_q` by default.
        max_q: the greatest length; found in `cu_seq_q`, so that it may be left out.
        max_k: likewise.
        scale: 1 / sqrt(E) by default.
        window_size: (left, right): a query sees so many keys to each side; -1 for no limit, (-1, 0) for causality. The
            last query of a sequence stands at its last key, whatever the lengths.
        enable_gqa: H is a multiple of G, and each H / G query heads in succession share a key and value head.

    Returns:
        (T_q, H, V), of query's dtype; zeros for queries that see no key.

    Raises:
        RuntimeError: shapes, dtypes, devices or bounds that do not fit; the message names the argument.
        TypeError: an argument that is not a Tensor.
        ValueError: an impossible `window_size`.
    """
    if is_symbolic(query, key, value, cu_seq_q, cu_seq_k):
        options = {"scale": scale, "window_size": window_size, "enable_gqa": enable_gqa}
        return record(varlen_attn, query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **options)
    cu_seq_k = cu_seq_q if cu_seq_k is None else cu_seq_k
    support.check_types(query=query, key=key, value=value)
    if support.has_autocast(query):
        query, key, value = support.autocast((query, key, value))
    _check(query, key, value, enable_gqa)
    _check_bounds("cu_seq_q", cu_seq_q, query, len(query))
    _check_bounds("cu_seq_k", cu_seq_k, query, len(key))
    if cu_seq_q.shape != cu_seq_k.shape:
        raise RuntimeError(f"cu_seq_k has shape {tuple(cu_seq_k.shape)}: expected cu_seq_q's {tuple(cu_seq_q.shape)}")
    left, right = _sides(window_size)
    if scale is None:
        scale = query.size(-1) ** -0.5 if query.size(-1) else 1.0
    output, _ = VARLEN(query, key, value, cu_seq_q, cu_seq_k, left, right, float(scale))
    return output


def _sides(window_size: Any) -> tuple[int, int]:
    fits = isinstance(window_size, Sequence) and len(window_size) == 2
    if not fits or any(not isinstance(side, int) or side < -1 for side in window_size):
        raise ValueError(f"window_size={window_size!r}: expected (left, right), two integers, each at least -1")
    return tuple(window_size)


def _check(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() != 3:
            raise RuntimeError(f"{name} has shape {tuple(tensor.shape)}: expected (total length, heads, size)")
        if tensor.dtype != query.dtype or not tensor.is_floating_point():
            raise RuntimeError(
                f"{name} has dtype {tensor.dtype}: expected query's {query.dtype}, a floating-point type"
            )
        if tensor.device != query.device:
            raise RuntimeError(f"{name} is on {tensor.device}: expected query's device {query.device}")
    if key.shape[2] != query.shape[2]:
        raise RuntimeError(f"key has size {key.shape[2]} in its last dimension: expected query's {query.shape[2]}")
    if value.shape[:2] != key.shape[:2]:
        raise RuntimeError(
            f"value has shape {tuple(value.shape)}: expected key's length and heads {tuple(key.shape[:2])}"
        )
    heads, groups = query.shape[1], key.shape[1]
    if groups != heads and not (enable_gqa and groups > 0 and heads % groups == 0):
        wanted = "a divisor of query's" if enable_gqa else "query's"
        raise RuntimeError(f"key has {groups} heads: expected {wanted} {heads}")


def _check_bounds(name: str, bounds: Tensor, query: Tensor, total: int) -> None:
    support.check_types(**{name: bounds})
    if bounds.dim() != 1 or bounds.is_floating_point() or bounds.dtype == torch.bool or bounds.numel() == 0:
        raise RuntimeError(
            f"{name} has shape {tuple(bounds.shape)}, {bounds.dtype}: expected integers (sequences + 1,)"
        )
    if bounds.device != query.device:
        raise RuntimeError(f"{name} is on {bounds.device}: expected query's device {query.device}")
