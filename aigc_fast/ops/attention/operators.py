"""Scaled dot-product attention with a band, a mask, grouped heads and dropout."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from aigc_fast.ops.attention import cpu, cuda, reference
from aigc_fast.ops.attention.choice import (
    triton_backward_unsupported,
    triton_detail,
    triton_unsupported,
    triton_varlen_backward_unsupported,
    triton_varlen_unsupported,
)
from aigc_fast.ops.attention.double_backward import double_backward
from aigc_fast.runtime import devices
from aigc_fast.runtime.derivatives import own_variable
from aigc_fast.runtime.devices import Reason, lazily
from aigc_fast.runtime.dtypes import UP_TO_FLOAT32, computing_dtype
from aigc_fast.runtime.operator import Operator
from aigc_fast.runtime.sharding import Sharding

__all__ = ["ATTENTION", "ATTENTION_BACKWARD", "VARLEN", "VARLEN_BACKWARD"]


def _empty_rows(tensor: Tensor, size: int) -> Tensor:
    """(batch, head, row, size) with the order of dimensions that `tensor` has in memory."""
    batches, heads, rows, own_size = tensor.shape
    if size == own_size and tensor.is_contiguous():
        return torch.empty_like(tensor)
    if heads > 1 and tensor.stride(1) < tensor.stride(2):
        return tensor.new_empty((batches, rows, heads, size)).transpose(1, 2)
    return tensor.new_empty((batches, heads, rows, size))


def _empty(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    output = _empty_rows(query, value.shape[3])
    return output, query.new_empty(query.shape[:3], dtype=computing_dtype(query.dtype))


def _setup(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, mask, ctx.philox_key, *ctx.numbers = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(query, key, value, mask)


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    found = ATTENTION_BACKWARD(grad, *ctx.saved_tensors, ctx.philox_key, *ctx.numbers)
    return *found, *[None] * 7


def _setup_backward(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.philox_key = inputs[:6]
    ctx.numbers = inputs[6:]
    ctx.save_for_backward(*tensors)


def _double_backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
    *tensors, mask = ctx.saved_tensors
    rest = mask, ctx.philox_key, *ctx.numbers
    if not torch.is_grad_enabled():
        return *double_backward(upstream, *tensors, *rest), *[None] * 7
    inputs = [own_variable(tensor, True) for tensor in tensors]
    first = reference.attention_backward(*inputs, *rest)
    found = torch.autograd.grad(first, inputs, upstream, create_graph=True, allow_unused=True)
    return *found, *[None] * 7


def _empty_gradients(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return tuple(_empty_rows(tensor, tensor.shape[3]) for tensor in (query, key, value))


def _flops_per_width(query: Sequence[int], key: Sequence[int]) -> int:
    """Of a product over all pairs of queries and keys, for each number of a head."""
    return 2 * query[0] * query[1] * query[2] * key[2]


def _flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *rest: Any, **options: Any) -> int:
    return _flops_per_width(query, key) * (query[3] + value[3])


def _flops_backward(
    grad: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *rest: Any, **options: Any
) -> int:
    return _flops_per_width(query, key) * (3 * query[3] + 2 * value[3])


_INPUTS = "Tensor query, Tensor key, Tensor value, "
_OPTIONS = "Tensor? mask, Tensor? philox_key, float dropout_p, SymInt left, SymInt right, SymInt offset, float scale"
_PRECISION = "*, str? precision=None"

ATTENTION = Operator(
    "attention",
    f"({_INPUTS}{_OPTIONS}, {_PRECISION}) -> (Tensor, Tensor)",
    reference=reference.attention,
    allocate=_empty,
    setup_context=_setup,
    detail={"cpu": cpu.detail, "cuda": cuda.detail, "triton": triton_detail},
    flops=_flops,
    backward=_backward,
    sharding=Sharding([0, 1, 2, 3], key=4, numbers=lambda q, k, *_: q.shape[1] * q.shape[2] * k.shape[2]),
)
ATTENTION_BACKWARD = Operator(
    "attention_backward",
    f"(Tensor grad, {_INPUTS}{_OPTIONS}, {_PRECISION}) -> (Tensor, Tensor, Tensor)",
    reference=reference.attention_backward,
    allocate=_empty_gradients,
    setup_context=_setup_backward,
    flops=_flops_backward,
    backward=_double_backward,
)
ATTENTION.register("cpu", cpu.attention, cpu.unsupported)
ATTENTION.register("cuda", cuda.attention, cuda.unsupported)
ATTENTION_BACKWARD.register("cpu", cpu.attention_backward, cpu.backward_unsupported)
for _op, _unsupported in ((ATTENTION, triton_unsupported), (ATTENTION_BACKWARD, triton_backward_unsupported)):
    _op.register("triton", lazily(f"{__package__}.triton", _op.name), _unsupported)
# Of arguments at which nothing has looked yet; heads may share keys and values where they are grouped.
attention_unseen, attention_unseen_grouped = (
    ATTENTION.filled_by(partial(cpu.attention_unseen, grouped)) for grouped in (False, True)
)


def _empty_varlen(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    total, heads, _ = query.shape
    output = query.new_empty(total, heads, value.shape[-1])
    return output, query.new_empty((heads, total), dtype=computing_dtype(query.dtype))


def _setup_varlen(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, Tensor]) -> None:
    tensors, (ctx.philox_key, *ctx.numbers) = inputs[:5], inputs[5:10]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors)


def _varlen_backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    return *VARLEN_BACKWARD(grad, *ctx.saved_tensors, ctx.philox_key, *ctx.numbers), *[None] * 10


def _setup_varlen_backward(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, ...]) -> None:
    tensors, (ctx.philox_key, *ctx.numbers) = inputs[:6], inputs[6:]
    ctx.save_for_backward(*tensors)


def _varlen_double_backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
    *tensors, cu_seq_q, cu_seq_k = ctx.saved_tensors
    keep_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [own_variable(tensor, keep_graph) for tensor in tensors]
        first = reference.attention_varlen_backward(*inputs, cu_seq_q, cu_seq_k, ctx.philox_key, *ctx.numbers)
        found = torch.autograd.grad(first, inputs, upstream, create_graph=keep_graph, allow_unused=True)
    return *found, *[None] * 7


def _empty_varlen_gradients(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in (query, key, value))


_SEQUENCES = "Tensor cu_seq_q, Tensor cu_seq_k, Tensor? philox_key, float dropout_p, int left, int right, float scale"
# What has no derivative.
_CACHE = "int num_splits, Tensor? seqused_k, Tensor? block_table"

VARLEN = Operator(
    "attention_varlen",
    f"({_INPUTS}{_SEQUENCES}, {_CACHE}, {_PRECISION}) -> (Tensor, Tensor)",
    reference=reference.attention_varlen,
    allocate=_empty_varlen,
    setup_context=_setup_varlen,
    backward=_varlen_backward,
)
VARLEN_BACKWARD = Operator(
    "attention_varlen_backward",
    f"(Tensor grad, {_INPUTS}{_SEQUENCES}, {_PRECISION}) -> (Tensor, Tensor, Tensor)",
    reference=reference.attention_varlen_backward,
    allocate=_empty_varlen_gradients,
    setup_context=_setup_varlen_backward,
    backward=_varlen_double_backward,
)


def _varlen_unsupported(query: Tensor, *rest: Any) -> Reason:
    return devices.cpu(query, query.dtype, UP_TO_FLOAT32)


for _op, _unsupported in ((VARLEN, triton_varlen_unsupported), (VARLEN_BACKWARD, triton_varlen_backward_unsupported)):
    _op.register("cpu", getattr(cpu, _op.name), _varlen_unsupported)
    _op.register("triton", lazily(f"{__package__}.triton", _op.name), _unsupported)
