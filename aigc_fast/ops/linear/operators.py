"""A linear layer with the activation that follows. Its gradients are linear layers too."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from aigc_fast.ops.linear import choice, cpu, reference
from aigc_fast.runtime import native
from aigc_fast.runtime.activations import DERIVATIVES, GRADIENTS_FROM_OUTPUT, told_by_output
from aigc_fast.runtime.backends import Runner
from aigc_fast.runtime.operator import Operator, ReadOnce
from aigc_fast.runtime.precision import precision

__all__ = ["LINEAR"]

NOTHING_FOLLOWS = "none", 0.0


def _empty(input: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return input.new_empty((*input.shape[:-1], *weight.shape[:-1]))


def _setup(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
    input, weight, bias, ctx.activation, ctx.slope = inputs
    told = output if ctx.activation != "none" and told_by_output(ctx.activation, ctx.slope) else None
    ctx.save_for_backward(input, weight, bias, told)


def _before_activation(ctx: Any, grad: Tensor) -> Tensor:
    """The gradient to what the activation took."""
    input, weight, bias, output = ctx.saved_tensors
    if told_by_output(ctx.activation, ctx.slope):
        return GRADIENTS_FROM_OUTPUT[ctx.activation](grad, output, ctx.slope)
    return grad * DERIVATIVES[ctx.activation](LINEAR(input, weight, bias, *NOTHING_FOLLOWS), ctx.slope)


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    ctx = ReadOnce(ctx)
    input, weight, *_ = ctx.saved_tensors
    grad = _before_activation(ctx, grad)
    of_input = of_weight = of_bias = None
    if ctx.needs_input_grad[0]:
        of_input = LINEAR(grad, weight.t(), None, *NOTHING_FOLLOWS)
    if ctx.needs_input_grad[1]:
        of_weight = LINEAR(_rows(grad).t(), _rows(input).t(), None, *NOTHING_FOLLOWS)
    if ctx.needs_input_grad[2]:
        of_bias = _rows(grad).sum(0)
    return of_input, of_weight, of_bias, None, None


def _flops(input: Sequence[int], weight: Sequence[int], *rest: Any, **options: Any) -> int:
    return 2 * prod(input[:-1]) * prod(weight)


def _signature(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Hashable:
    """See `Choice`."""
    tensors, numbers = native.signature(input, weight, bias), native.arguments(*rest)
    return tensors, numbers, native.level(), precision(), torch.get_num_threads()


def _prepare(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Runner:
    run = cpu.prepare(input, weight, bias, *rest, reference.linear_in_place)
    return Runner(run, None if choice.leave(input, weight, bias, *rest) is None else reference.linear)


def _run(*args: Any) -> Tensor:
    return _prepare(*args).run(*args)


LINEAR = Operator(
    "linear",
    "(Tensor input, Tensor weight, Tensor? bias, str activation, float slope, *, str? precision=None) -> Tensor",
    reference=reference.linear,
    allocate=_empty,
    setup_context=_setup,
    backward=_backward,
    signature=_signature,
    flops=_flops,
)
LINEAR.choice.register("cpu", _run, lambda *args: cpu.unsupported(*args[:3]), choice.slower, _prepare, choice.leave)
LINEAR.choice.register(
    "reference", LINEAR.run_reference, prepare=lambda *args: Runner(reference.linear_in_place, reference.linear)
)
