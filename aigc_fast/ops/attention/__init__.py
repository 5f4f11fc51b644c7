"""Scaled dot-product attention with a band, a mask, grouped heads and dropout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aigc_fast.ops.attention import cpu, reference
from aigc_fast.ops.attention.double_backward import double_backward
from aigc_fast.runtime.dtypes import computing_dtype
from aigc_fast.runtime.operator import Operator

__all__ = ["ATTENTION", "ATTENTION_BACKWARD"]


def _fake(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    output = cpu.empty_like_rows(query, value.shape[3])
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
    inputs = [reference.own_variable(tensor, True) for tensor in tensors]
    first = reference.attention_backward(*inputs, *rest)
    found = torch.autograd.grad(first, inputs, upstream, create_graph=True, allow_unused=True)
    return *found, *[None] * 7


def _as_promised(reference_function: Any, fake: Any) -> Any:
    """The reference with the strides that compile and export were promised."""

    def run(*args: Any) -> tuple[Tensor, ...]:
        found, promised = reference_function(*args), fake(*args)
        return tuple(a if a.stride() == b.stride() else b.copy_(a) for a, b in zip(found, promised, strict=True))

    return run


def _fake_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return tuple(cpu.empty_like_rows(tensor, tensor.shape[3]) for tensor in (query, key, value))


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
    fake=_fake,
    setup_context=_setup,
    detail=cpu.detail,
    flops=_flops,
    backward=_backward,
)
ATTENTION_BACKWARD = Operator(
    "attention_backward",
    f"(Tensor grad, {_INPUTS}{_OPTIONS}, {_PRECISION}) -> (Tensor, Tensor, Tensor)",
    reference=reference.attention_backward,
    fake=_fake_backward,
    setup_context=_setup_backward,
    flops=_flops_backward,
    backward=_double_backward,
)
ATTENTION.choice.register("cpu", cpu.attention, cpu.unsupported)
ATTENTION.choice.register("reference", _as_promised(reference.attention, _fake))
ATTENTION_BACKWARD.choice.register("cpu", cpu.attention_backward, cpu.backward_unsupported)
ATTENTION_BACKWARD.choice.register("reference", _as_promised(reference.attention_backward, _fake_backward))
