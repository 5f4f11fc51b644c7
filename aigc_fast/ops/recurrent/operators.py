"""Recurrent networks over whole sequences, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aigc_fast.ops.recurrent import cpu, cuda, reference
from aigc_fast.ops.recurrent.sizes import Options, kept_size, sizes_of
from aigc_fast.runtime.derivatives import own_variable
from aigc_fast.runtime.operator import Operator

__all__ = ["RECURRENT", "RECURRENT_BACKWARD"]


def _empty(
    input: Tensor, batch_sizes: Tensor | None, states: Sequence[Tensor], params: Sequence[Tensor], *numbers: Any
) -> tuple[Tensor, ...]:
    *rest, keep = numbers
    options = Options(*rest)
    sizes = sizes_of(input, batch_sizes, states, options)
    output = input.new_empty((*input.shape[:-1], options.directions * sizes.size))
    cells = input.new_empty(states[1].shape if options.states == 2 else 0)
    kept = input.new_empty(kept_size(sizes, options) if keep else 0, dtype=torch.float32)
    return output, input.new_empty(states[0].shape), cells, kept


def _setup(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, ...]) -> None:
    input, batch_sizes, states, params, *numbers = inputs
    ctx.numbers = numbers[:-1]
    ctx.states = len(states)
    ctx.mark_non_differentiable(output[3], *([] if len(states) == 2 else [output[2]]))
    ctx.save_for_backward(input, batch_sizes, *states, *params, output[0], output[3])


def _backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    states = ctx.states
    input, batch_sizes, *tensors, output, kept = ctx.saved_tensors
    given = input, batch_sizes, tensors[:states], tensors[states:]
    to_input = ctx.needs_input_grad[0]
    found = RECURRENT_BACKWARD(list(grads[: 1 + states]), *given, output, kept, *ctx.numbers, to_input)
    return found[0] if to_input else None, None, list(found[1 : 1 + states]), list(found[1 + states :]), *[None] * 7


def _empty_gradients(
    grads: Sequence[Tensor],
    input: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    output: Tensor,
    kept: Tensor,
    *numbers: Any,
) -> tuple[Tensor, ...]:
    to_input = input.new_empty(input.shape if numbers[-1] else 0)
    return to_input, *(tensor.new_empty(tensor.shape) for tensor in (*states, *params))


def _setup_backward(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
    grads, input, batch_sizes, states, params, _, _, *ctx.numbers = inputs
    ctx.counts = len(grads), len(states)
    ctx.save_for_backward(batch_sizes, *grads, input, *states, *params)


def _double_backward(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
    if isinstance(upstream[0], list):
        (upstream,) = upstream
    grads, states = ctx.counts
    batch_sizes, *tensors = ctx.saved_tensors
    keep_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [own_variable(tensor, keep_graph) for tensor in tensors]
        input, *rest = inputs[grads:]
        given = inputs[:grads], input, batch_sizes, rest[:states], rest[states:], None, None
        first = reference.recurrent_backward(*given, *ctx.numbers)
        # Without the empty one to an input that wants none.
        first, upstream = zip(
            *(pair for pair in zip(first, upstream, strict=True) if pair[0].requires_grad), strict=True
        )
        found = torch.autograd.grad(first, inputs, upstream, create_graph=keep_graph, allow_unused=True)
    to_rest = list(found[grads + 1 :])
    return list(found[:grads]), found[grads], None, to_rest[:states], to_rest[states:], *[None] * 9


_GIVEN = "Tensor input, Tensor? batch_sizes, Tensor[] states, Tensor[] params"
_NUMBERS = "int mode, int layers, bool bidirectional, bool has_biases, bool batch_first, float eps"

RECURRENT = Operator(
    "recurrent",
    f"({_GIVEN}, {_NUMBERS}, bool keep) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=reference.recurrent,
    allocate=_empty,
    setup_context=_setup,
    detail={"cpu": cpu.detail, "cuda": cuda.detail},
    backward=_backward,
)
RECURRENT_BACKWARD = Operator(
    "recurrent_backward",
    f"(Tensor[] grads, {_GIVEN}, Tensor output, Tensor kept, {_NUMBERS}, bool to_input) -> Tensor[]",
    reference=reference.recurrent_backward,
    allocate=_empty_gradients,
    setup_context=_setup_backward,
    backward=_double_backward,
)
RECURRENT.register("cpu", cpu.recurrent, cpu.unsupported)
RECURRENT.register("cuda", cuda.recurrent, cuda.unsupported)
RECURRENT_BACKWARD.register("cpu", cpu.recurrent_backward, cpu.backward_unsupported)
RECURRENT_BACKWARD.register("cuda", cuda.recurrent_backward, cuda.backward_unsupported)
